"""The memory that `--check` tells of a stage, beside what its compiled program asks for.

    python -m benchmarks.memory_estimate --backbone vit_base --stage self_distill --batch 8

The stage is that of benchmarks/step_time.py, compiled and not run. The second figure is XLA's own:
the program's arguments, and what it allocates beside them.
"""

import time

import jax

from benchmarks import cases, ours_step, outcome
from sdfp import memory, parallel
from sdfp.data import loading
from sdfp.optim import adamw_of


def measure(case: cases.Case) -> dict:
    made = cases.make(case)
    with parallel.precision(made.settings.precision).context():
        job = ours_step.build(made, case.stage)
        tx = adamw_of(made.recipe)
        step = memory.Step(job.loss_fn, made.recipe, "train", tx, job.teacher)
        params = jax.eval_shape(job.start).params
        frozen = params["encoder"] if job.teacher else None
        # Before a run there is no table: `--check` counts the teacher that will make it.
        feed = loading.open_feed(made.split, job.devices, made.settings.run.resident_gb)
        began = time.perf_counter()
        need = memory.need_of(step, params, frozen, job.prepare, feed, job.devices.count)
        traced = time.perf_counter() - began
        asked = []

        def only_compile(state, *arguments):
            asked.append(job.compiled.lower(state, *arguments).compile().memory_analysis())
            return state, {}

        began = time.perf_counter()
        next(ours_step.calls(job, 1, only_compile))
        compiled = time.perf_counter() - began
    return {
        **case.__dict__,
        **need._asdict(),
        "arguments": asked[0].argument_size_in_bytes,
        "temporary": asked[0].temp_size_in_bytes,
        "seconds": {"traced": traced, "compiled": compiled},
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def show(made: dict) -> None:
    gb = {key: value / 1e9 for key, value in made.items() if isinstance(value, int)}
    told, asked = gb["held"] + gb["activations"], gb["arguments"] + gb["temporary"]
    print(f"estimated: held {gb['held']:.2f} + activations {gb['activations']:.2f} = {told:.2f} GB")
    print(
        f"XLA: arguments {gb['arguments']:.2f} + temporary {gb['temporary']:.2f} = {asked:.2f} GB"
    )
    print(f"estimated / XLA: {told / asked:.2f}")
    print("traced in {traced:.1f} s, compiled in {compiled:.1f} s".format(**made["seconds"]))


if __name__ == "__main__":
    flags = cases.flags_of("python -m benchmarks.memory_estimate").parse_args()
    flags.steps = 1
    outcome.conclude(lambda: measure(cases.of(flags)), show, flags.json)
