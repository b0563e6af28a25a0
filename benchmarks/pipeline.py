"""Wall-clock of all stages of one small job on real images, ours and PyTorch's: A B A B.

    python -m benchmarks.pipeline --data CUB_FOLDER --json out.json [--steps 100]

Further pre-training, self-distillation, fine-tuning with one seed and the test set, in one process
from its start to its end. Ours is `python -m sdfp.main` on configs/vit_cub.py with a small ViT from
scratch, an empty image cache and nothing compiled before. The reference
(benchmarks/torch_stages.py) trains the same model on the same files as often; its loaders decode
each image anew in every epoch, as the authors' do. It is handed the list of files, and they are in
the system's page cache for both. `ratio` in the JSON is reference / ours, of the medians.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import outcome
from sdfp import config, experiment
from sdfp.data import cub
from sdfp.settings import Data, Experiment

ROOT = Path(__file__).parents[1]
CONFIG = "configs/vit_cub.py"
SIDES = ("ours", "reference")
STAGES = {
    "further_pretrain": "further_pretrain",
    "self_distill": "self_distill_1",
    "finetune": "finetune/self_distillation/seed_0",
}
"""What ours calls them."""
SMALL = {
    "methods": "self_distillation",
    "seeds": "0",
    "init.kind": "scratch",
    "init.weights": "",
    "method.kd.weights": "",
    "data.image_size": 64,
    "model.image_size": 64,
    "model.patch_size": 8,
    "model.dim": 128,
    "model.depth": 6,
    "model.heads": 4,
    "model.mlp_dim": 512,
    "model.decoder_dim": 64,
    "model.decoder_depth": 2,
    "model.decoder_heads": 4,
    "model.decoder_mlp_dim": 256,
}


def read_flags(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline")
    parser.add_argument("--data", required=True, help="folder with CUB_200_2011, or a part of it")
    parser.add_argument("--steps", type=int, default=100, help="of each stage")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each side")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(words)


def overrides(flags: argparse.Namespace) -> list[str]:
    """The job, as on the command line of sdfp.main."""
    values = {**SMALL, "data.dir": Path(flags.data).resolve()}
    for stage in STAGES:
        values |= {f"stages.{stage}.steps": flags.steps, f"stages.{stage}.batch_size": 64}
    values["stages.finetune.warmup_steps"] = flags.steps // 20
    return [f"--config.{key}={value}" for key, value in values.items()]


def read_settings(words: list[str]) -> Experiment:
    """The same job as settings."""
    return experiment.parse(config.read(str(ROOT / CONFIG), words))


def reference_job(settings: Experiment) -> dict[str, Any]:
    """What benchmarks/torch_stages.py reads. All files are read once: both find them cached.

    Raises:
        UserError: no data set there.
    """
    data = settings.data
    assert isinstance(data, Data)
    listing = cub.from_files(data.dir)
    rows = {
        part: [(str(example.path), example.label) for example in examples or ()]
        for part, examples in (("train", listing.train), ("test", listing.test))
    }
    for path, _ in rows["train"] + rows["test"]:
        Path(path).read_bytes()
    return {
        **rows,
        "classes": len(listing.class_names),
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
        "sizes": asdict(settings.model),
        "recipes": {stage: asdict(getattr(settings.stages, stage)) for stage in STAGES},
        "eval_batch": settings.run.eval_batch_size,
    }


def ours(words: list[str], folder: Path) -> dict[str, Any]:
    """One run of ours in an empty folder."""
    place = [f"--config.data.cache_dir={folder / 'cache'}", f"--workdir={folder / 'run'}"]
    command = ["sdfp.main", f"--config={CONFIG}", *words, *place]
    total, _ = _run(command)
    results = json.loads((folder / "run" / "results.json").read_text())
    seconds = {record["name"]: record["seconds"] for record in results["stages"]}
    stages = {stage: seconds[name] for stage, name in STAGES.items()}
    return _with_rest(total, stages, results["results"][0]["accuracy"])


def reference(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One run of the reference in an empty folder."""
    file = folder / "job.json"
    file.write_text(json.dumps({**job, "workdir": str(folder)}))
    total, output = _run(["benchmarks.torch_stages", str(file)])
    found = json.loads(output.strip().splitlines()[-1])
    return _with_rest(total, found["stages"], found["accuracy"])


def _run(module_and_words: list[str]) -> tuple[float, str]:
    """Seconds and standard output of a Python process."""
    began = time.perf_counter()
    printed = outcome.output(["-m", *module_and_words])
    return time.perf_counter() - began, printed


def _with_rest(total: float, stages: dict[str, float], accuracy: float) -> dict[str, Any]:
    """`rest`: start, imports, our decoding of all images, saving, the test set."""
    stages = stages | {"rest": total - sum(stages.values())}
    return {"seconds": total, "stages": stages, "accuracy": accuracy}


def compare(flags: argparse.Namespace) -> dict[str, Any]:
    words = overrides(flags)
    job = reference_job(read_settings(words))
    runs: dict[str, list[dict]] = {side: [] for side in SIDES}
    for number in range(flags.repeats):
        for side in SIDES:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                run = ours(words, folder) if side == "ours" else reference(job, folder)
            runs[side].append(run)
            print(f"{side} {number}: {run['seconds']:.1f} s", flush=True)
    made = {
        "command": "python -m benchmarks.pipeline " + " ".join(sys.argv[1:]),
        "machine": outcome.machine(),
        "images": {part: len(job[part]) for part in ("train", "test")},
        "overrides": words,
        **{side: medians(found) for side, found in runs.items()},
    }
    ratio = made["reference"]["seconds"] / made["ours"]["seconds"]
    return {**made, "ratio": ratio, "processes": runs}


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all processes of one side."""
    stages = {
        stage: statistics.median(run["stages"][stage] for run in runs)
        for stage in runs[0]["stages"]
    }
    return {"seconds": statistics.median(run["seconds"] for run in runs), "stages": stages}


def show(made: Mapping[str, Any]) -> None:
    every = {side: {**made[side]["stages"], "all": made[side]["seconds"]} for side in SIDES}
    print(f"{'seconds':18} {'ours':>9} {'reference':>9} {'ratio':>6}")
    for name, value in every["ours"].items():
        other = every["reference"][name]
        print(f"{name:18} {value:9.2f} {other:9.2f} {other / value:6.2f}")


if __name__ == "__main__":
    flags = read_flags()
    outcome.conclude(lambda: compare(flags), show, flags.json)
