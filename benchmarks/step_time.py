"""Time of one training step, ours and PyTorch's, in alternating processes: A B A B.

    python -m benchmarks.step_time --backbone vit_base --stage self_distill --batch 8 \\
        --against torch --json out.json

The reference (benchmarks/torch_step.py) is the authors' procedure in PyTorch and transformers with
the same model, examples and optimiser. `ratio` in the JSON is reference / ours, of the medians; GB
is peak memory beyond what importing the libraries takes.
"""

import argparse
import json
import statistics
import sys
from dataclasses import asdict, replace

from benchmarks import cases, outcome

SIDES = {"ours": "benchmarks.ours_step", "reference": "benchmarks.torch_step"}


def read_flags(words: list[str] | None = None) -> argparse.Namespace:
    parser = cases.flags_of("python -m benchmarks.step_time")
    parser.add_argument("--against", choices=("torch", "nothing"), default="torch")
    parser.add_argument(
        "--reference_precision", default="auto", help="auto|float32|tf32|bfloat16|bfloat16_compile"
    )
    parser.add_argument("--steps", type=int, default=5, help="timed, of each process; 2 at least")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each side")
    parser.add_argument(
        "--micro_batches", type=int, default=1, help="of the reference, where memory is short"
    )
    flags = parser.parse_args(words)
    if flags.steps < 2:
        parser.error("--steps: 2 at least, for the time between calls")
    return flags


def summary(results: list[dict], peak: float) -> dict:
    """Of all processes of one side."""
    of_process = [outcome.per_step(result) for result in results]
    step, flops = statistics.median(of_process), results[0]["flops"]
    return {
        "seconds": step,
        "fastest": min(of_process),
        "slowest": max(of_process),
        "flops": flops,
        "flops_per_second": flops / step,
        "matmul_peak": peak,
        "share_of_peak": flops / step / peak,
        "peak_bytes": max(result["peak_bytes"] for result in results),
        "import_bytes": max(result["import_bytes"] for result in results),
        "precision": results[0]["precision"],
        "first_seconds": statistics.median(result["first_seconds"] for result in results),
    }


def compare(flags: argparse.Namespace) -> dict:
    case = cases.of(flags)
    theirs = {"precision": flags.reference_precision, "micro_batches": flags.micro_batches}
    case_of = {"ours": case, "reference": replace(case, **theirs)}
    sides = ["ours"] if flags.against == "nothing" else ["ours", "reference"]
    results: dict[str, list[dict]] = {side: [] for side in sides}
    for number in range(flags.repeats):
        for side in sides:
            given = json.dumps(asdict(case_of[side]))
            results[side].append(outcome.answer(["-m", SIDES[side], given]))
            print(f"{side} {number}: {_steps(results[side][-1]['seconds'])}", flush=True)
    made = {"command": "python -m benchmarks.step_time " + " ".join(sys.argv[1:])}
    made |= {"case": asdict(case), "machine": outcome.machine()}
    for side in sides:
        made[side] = summary(results[side], _peak(results, side))
    first = results["ours"]
    for key in ("compile_seconds", "outside", "late"):
        made["ours"][key] = statistics.median(result[key] for result in first)
    if "reference" in made:
        own = lambda side: made[side]["peak_bytes"] - made[side]["import_bytes"]
        made["ratio"] = made["reference"]["seconds"] / made["ours"]["seconds"]
        made["memory_ratio"] = own("reference") / own("ours")
    return made | {"processes": results}


def _peak(results: dict[str, list[dict]], side: str) -> float:
    """The fastest matrix product of that side's precision that any process of the run has seen."""
    same = results[side][0]["precision"]
    every = [result for group in results.values() for result in group]
    return max(result["matmul_peak"] for result in every if result["precision"] == same)


def _steps(seconds: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in seconds[:10]) + " s"


def show(made: dict) -> None:
    print(
        f"{'':10} {'s/step':>8} {'range':>15} {'GFLOP':>8} {'TFLOP/s':>8} {'of peak':>8} {'GB':>6}"
    )
    for side in [side for side in SIDES if side in made]:
        s = made[side]
        spread = f"{s['fastest']:.4g}-{s['slowest']:.4g}"
        print(
            f"{side:10} {s['seconds']:8.4g} {spread:>15} {s['flops'] / 1e9:8.1f} "
            f"{s['flops_per_second'] / 1e12:8.3f} {s['share_of_peak']:8.2f} "
            f"{(s['peak_bytes'] - s['import_bytes']) / 1e9:6.2f} {s['precision']}"
        )
    ours = made["ours"]
    print(
        f"ours: compilation {ours['compile_seconds']:.1f} s, no call under way "
        f"{ours['outside']:.2%} of the time, calls that ended before the next was made "
        f"{ours['late']:.0%}"
    )
    if "ratio" in made:
        print(f"reference / ours: time {made['ratio']:.2f}, memory {made['memory_ratio']:.2f}")


if __name__ == "__main__":
    flags = read_flags()
    outcome.conclude(lambda: compare(flags), show, flags.json)
