"""What each device holds of a training state, and what its program needs beyond, with and without
config.parallel.fsdp:

    JAX_NUM_CPU_DEVICES=8 python -m benchmarks.fsdp --backbone vit_base --stage further_pretrain \\
        --batch 8 --json out.json

The state is placed as a run does it, and its buffers on each device are counted; with --compile the
program is made as well, not run, and says what it needs.
"""

import argparse
import sys
from dataclasses import asdict, replace
from typing import Any

import jax

from benchmarks import cases, ours_step, outcome
from sdfp import parallel


class _Made(Exception):
    """The program is there: nothing is to be run."""


def held(job: ours_step.Job) -> tuple[list[int], int]:
    """Bytes of the state on each device, and in all of one copy."""
    leaves = jax.tree.leaves(job.start())
    on = dict.fromkeys(leaves[0].sharding.device_set, 0)
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            on[shard.device] += shard.data.nbytes
    return list(on.values()), sum(leaf.nbytes for leaf in leaves)


def needed(job: ours_step.Job) -> dict[str, int]:
    """Bytes per device of the program's arguments, and of what it needs beside them."""
    found = {}

    def lowered(*arguments):
        analysis = job.compiled.lower(*arguments).compile().memory_analysis()
        found["arguments"] = analysis.argument_size_in_bytes
        found["temporary"] = analysis.temp_size_in_bytes
        raise _Made

    try:
        next(iter(ours_step.calls(job, job.made.timed, lowered)))
    except _Made:
        return found
    raise RuntimeError("no program was called")


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    made: dict[str, Any] = {"command": "python -m benchmarks.fsdp " + " ".join(sys.argv[1:])}
    made |= {"devices": jax.device_count(), "layouts": {}}
    for fsdp in (True, False) if flags.both else (True,):
        case = cases.of(flags)
        case = replace(case, options=(*case.options, f"--config.parallel.fsdp={fsdp}"))
        job = ours_step.build(cases.make(case), case.stage)
        on_each, whole = held(job)
        own = {"state": on_each, "whole": whole, "case": asdict(case)}
        precision = parallel.precision(job.made.settings.precision)
        with precision.context():
            own |= needed(job) if flags.compile else {}
        made["layouts"]["fsdp" if fsdp else "plain"] = own
    return made


def show(made: dict[str, Any]) -> None:
    for name, own in made["layouts"].items():
        most, whole = max(own["state"]), own["whole"]
        told = f"{name:6} {made['devices']} devices: state {most / 1e6:,.1f} MB on each"
        told += f" ({most / whole:.4f} of {whole / 1e6:,.1f} MB)"
        if "temporary" in own:
            told += f"; arguments {own['arguments'] / 1e6:,.1f} MB, beside them "
            told += f"{own['temporary'] / 1e6:,.1f} MB"
        print(told)


if __name__ == "__main__":
    parser = cases.flags_of("python -m benchmarks.fsdp")
    parser.add_argument("--both", action="store_true", help="also without fsdp")
    parser.add_argument("--compile", action="store_true")
    flags = parser.parse_args()
    flags.steps = 6
    outcome.conclude(lambda: measure(flags), show, flags.json)
