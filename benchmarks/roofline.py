"""Where the time of a training step of ours goes, and how fast each part could be at most.

    python -m benchmarks.roofline --backbone vit_base --stage self_distill --batch 8 --json out.json

A product does so many operations on so many bytes, and the machine's fastest large product and
fastest pass over memory, both measured here, bound its time: the longer of operations / peak and
bytes / bandwidth. Time comes from a trace of one call, after one more: several steps, since its
memory is touched for the first time in the first. XLA's CPU hands products to other threads, and
the trace has those only until then; what no event of the trace accounts for is therefore given to
the products with parameters, which are most of them. Tried on a CPU only.
"""

import argparse
import collections
import glob
import gzip
import json
import re
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import cases, flops, ours_step, outcome
from sdfp import parallel

PARTS = {
    "parameters": "products with parameters",
    "attention": "attention: products, softmax, their transpositions",
    "zeros": "filling what loops write to",
    "update": "optimiser, and what is done once per step",
    "rest": "norms, activations, dropout, losses, copies",
}
PROJECTION = (
    r"/(query|key|value|out|mlp_in|mlp_out|\w*embed|pred|dense|head)/(dot_general|transpose)"
)


def part_of(kind: str, where: str) -> str:
    """The part that an instruction belongs to, by its name and its `op_name`."""
    if kind.startswith("wrapped_broadcast"):
        return "zeros"
    if re.search(PROJECTION, where):
        return "parameters"
    if re.search(r"\.attention/|rhq", where):
        return "attention"
    return "rest" if "jvp(" in where else "update"


def traced(job: ours_step.Job, steps: int) -> tuple[dict[str, float], float, tuple]:
    """Seconds per step of each part, seconds per step of the call, the call's arguments."""
    state, arguments = job.start(), []

    def keep(state, *rest):
        arguments[:] = rest
        return job.compiled(state, *rest)

    for _ in ours_step.calls(job, steps, keep):
        pass
    text = job.compiled.lower(state, *arguments).compile().as_text()
    where = {}
    for line in re.finditer(r"^\s*(?:ROOT )?%([\w.\-]+) = .*$", text, re.MULTILINE):
        named = re.search(r'op_name="([^"]*)"', line[0])
        where[line[1]] = named[1] if named else ""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            state, metrics = job.compiled(state, *arguments)
            jax.block_until_ready(metrics)
            seconds = time.perf_counter() - began
        file = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)[0]
        with gzip.open(file) as opened:
            events = json.load(opened)["traceEvents"]
    done = int(arguments[-1])
    spent: dict[str, float] = collections.defaultdict(float)
    for event in events:
        name = event.get("args", {}).get("hlo_op", event.get("name"))
        # A loop's own time is that of the instructions within.
        if event.get("ph") == "X" and name in where and not name.startswith("while"):
            spent[part_of(name, where[name])] += event["dur"] / 1e6 / done
    return dict(spent), seconds / done, (state, *arguments)


def bandwidth() -> float:
    """Bytes read and written per second when a large array is changed in place, at best."""
    array = jnp.zeros(2**26)
    change = jax.jit(lambda x: x + 1, donate_argnums=0)
    seconds = []
    for _ in range(8):
        array.block_until_ready()
        began = time.perf_counter()
        array = change(array)
        array.block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * array.nbytes / min(seconds)


def measure(flags: argparse.Namespace) -> dict:
    case = cases.of(flags)
    made = cases.make(case)._replace(timed=3 * flags.steps)  # one call has a third of them
    precision = parallel.precision(made.settings.precision)
    with precision.context():
        job = ours_step.build(made, case.stage)
        spent, seconds, arguments = traced(job, flags.steps)
        program = jax.make_jaxpr(job.compiled)(*arguments)
        peak, rate = ours_step.matmul_peak(precision), bandwidth()
    spent["parameters"] = seconds - sum(spent[part] for part in PARTS if part != "parameters")
    if spent["parameters"] < 0:
        raise RuntimeError(f"the trace has more than the {seconds} s of a step: {spent}")
    parts = {part: {"seconds": spent.get(part, 0.0)} for part in PARTS}
    for part, wanted in (("parameters", False), ("attention", True)):
        of: Callable = lambda count, wanted=wanted: flops.total(
            program, lambda product: count(product) if flops.batched(product) == wanted else 0
        )
        at_best = of(lambda one: max(flops.flops(one) / peak, flops.moved_bytes(one) / rate))
        parts[part] |= {"flops": of(flops.flops), "bytes": of(flops.moved_bytes)}
        parts[part] |= {"at_best": at_best}
    return {
        "case": vars(case),
        "machine": {**outcome.machine(), "matmul_peak": peak, "bandwidth": rate},
        "seconds": seconds,
        "parts": parts,
    }


def show(found: dict) -> None:
    machine = found["machine"]
    print(
        f"fastest product {machine['matmul_peak'] / 1e9:.0f} GFLOP/s, memory "
        f"{machine['bandwidth'] / 1e9:.1f} GB/s, step {found['seconds']:.3g} s"
    )
    print(f"{'s/step':>8} {'at best':>8} {'GFLOP':>8} {'FLOP/B':>7}")
    for part, told in found["parts"].items():
        counted = " " * 25
        if "flops" in told:
            counted = (
                f"{told['at_best']:8.2f} {told['flops'] / 1e9:8.0f} "
                f"{told['flops'] / told['bytes']:7.0f}"
            )
        print(f"{told['seconds']:8.2f} {counted}  {PARTS[part]}")


if __name__ == "__main__":
    parser = cases.flags_of("python -m benchmarks.roofline")
    parser.add_argument("--steps", type=int, default=4, help="of the traced call")
    flags = parser.parse_args()
    outcome.conclude(lambda: measure(flags), show, flags.json)
