"""A small ViT on the CUB subset: SIGKILL at a random moment of every stage, then the same command.

    SDFP_TEST_DATA=../shared/data python tests/soak/kill_cub.py --workdir /tmp/kill_cub --seed 1

Compares all final parameters and results with an undisturbed run, and exits with 1 where they
differ. About 6 minutes on 2 cores; not part of the test suite.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGES = (
    "further_pretrain",
    "finetune/further_pretrain/seed_0",
    "self_distill_1",
    "finetune/self_distillation/seed_0",
)
SETTINGS = {
    "init.kind": "scratch",
    "init.weights": "",
    "methods": "further_pretrain,self_distillation",
    "seeds": "0",
    "data.image_size": 64,
    "model.image_size": 64,
    "model.patch_size": 8,
    "model.dim": 128,
    "model.depth": 4,
    "model.heads": 4,
    "model.mlp_dim": 512,
    "model.decoder_dim": 64,
    "model.decoder_depth": 2,
    "model.decoder_heads": 4,
    "model.decoder_mlp_dim": 256,
    "stages.further_pretrain.steps": 60,
    "stages.self_distill.steps": 60,
    "stages.finetune.steps": 60,
    "stages.finetune.warmup_steps": 5,
    "run.checkpoint_every": 7,
    "run.steps_per_call": 2,
}


def start(workdir: Path) -> subprocess.Popen:
    data = Path(os.environ["SDFP_TEST_DATA"]).absolute()
    folder = data / "images/cub200_2011_first50classes_short112"
    cache = workdir.parent / "cache"
    settings = {**SETTINGS, "data.dir": folder, "data.cache_dir": cache}
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "sdfp.main", "--config=configs/vit_cub.py"]
    with (workdir.parent / f"{workdir.name}.log").open("a") as log:
        arguments = [*command, f"--workdir={workdir}", *overrides]
        return subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=log)


def outcome(workdir: Path) -> dict:
    """Digests of all final parameters, and the table."""
    manifests = sorted((workdir / "stages").rglob("final/manifest.json"))
    digests = {str(m.relative_to(workdir)): json.loads(m.read_text())["digest"] for m in manifests}
    return {
        "digests": digests,
        "summary": json.loads((workdir / "results.json").read_text())["summary"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=lambda path: Path(path).absolute(), required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True)  # an old one would be read, not run
    rng = random.Random(args.seed)
    undisturbed, killed = args.workdir / "undisturbed", args.workdir / "killed"
    if start(undisturbed).wait():
        return 1
    for stage in STAGES:
        process = start(killed)
        while not any((killed / "stages" / stage).glob("step_*/manifest.json")):
            if process.poll() is not None:
                return 1
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = sorted(
            path.parent.name for path in (killed / "stages" / stage).glob("*/manifest.json")
        )
        print(f"killed in {stage}, which had {', '.join(left)}", flush=True)
    if start(killed).wait():
        return 1
    same = outcome(undisturbed) == outcome(killed)
    print(
        f"{len(outcome(killed)['digests'])} final checkpoints:",
        "bit-identical" if same else "DIFFER",
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
