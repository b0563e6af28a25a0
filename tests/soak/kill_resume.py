"""A run that is stopped at random moments, of a save in particular, each time followed by the same
command: in the end the same bits as undisturbed.

    python tests/soak/kill_resume.py --kills 20 --workdir /tmp/kill_resume

SIGKILL or SIGTERM, by chance. A run that comes to its end before all kills are done is compared,
and another one begun. Exits with 1 where anything differs or an exit code is not the one that is
promised. By default a tiny model (a quarter of a minute per kill on 2 idle cores); what else is
given goes to sdfp.main, as for a small ViT on real images:

    ... --config=configs/vit_cub.py:small --config.data.dir=/data/cub
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = ["--config=tests/tiny_config.py", "--config.run.steps_per_call=1"]
TINY += ["--config.run.probe_every=15"]
TINY += [
    f"--config.stages.{stage}.steps=30"
    for stage in ("pretrain", "further_pretrain", "self_distill", "finetune")
]
LONGEST = 30.0
"""Seconds that a SIGTERM may take."""


class Soak:
    """One command, in work directories below `folder`."""

    def __init__(self, folder: Path, settings: list[str], rng: random.Random):
        self.folder, self.settings, self.rng = folder, settings, rng

    def start(self, workdir: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "sdfp.main", *self.settings, f"--workdir={workdir}"]
        with (self.folder / f"{workdir.name}.log").open("a") as log:
            environment = {
                **os.environ,
                "JAX_COMPILATION_CACHE_DIR": str(self.folder / "programs"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def undisturbed(self, workdir: Path) -> float:
        """Runs to the end. Returns the seconds of a second time, with everything compiled."""
        for _ in range(2):
            shutil.rmtree(workdir, ignore_errors=True)
            began = time.monotonic()
            if self.start(workdir).wait():
                raise SystemExit(f"the undisturbed run failed: see {workdir}.log")
        return time.monotonic() - began

    def stop_once(self, workdir: Path, longest: float) -> str | None:
        """Starts, and stops at a random moment. Returns where; None if the run ended before."""
        process, in_save = self.start(workdir), self.rng.random() < 0.4
        until = time.monotonic() + self.rng.uniform(0.1 * longest, 1.2 * longest)
        while process.poll() is None and time.monotonic() < until:
            if in_save and any(workdir.glob("stages/**/*.saving")):
                time.sleep(self.rng.uniform(0, 0.2))
                break
            time.sleep(0.002)
        if process.poll() is not None:
            if process.returncode:
                raise SystemExit(
                    f"exit code {process.returncode}: {self.folder / workdir.name}.log"
                )
            return None
        number = self.rng.choice((signal.SIGKILL, signal.SIGTERM))
        saving = [path.name for path in workdir.glob("stages/**/*.saving")]
        process.send_signal(number)
        began = time.monotonic()
        code = process.wait(timeout=LONGEST)
        # Before a run has begun to listen, a signal ends it as any other process.
        if code not in ((-number, 143) if number == signal.SIGTERM else (-number,)):
            raise SystemExit(f"exit code {code} after {signal.Signals(number).name}")
        told = f"{signal.Signals(number).name} -> {code} in {time.monotonic() - began:.1f} s"
        stages = workdir.glob("stages/**/metrics.jsonl")
        last = max(stages, key=lambda path: path.stat().st_mtime, default=workdir / "begin")
        where = last.parent.name if "seed" not in last.parent.name else "/".join(last.parts[-4:-1])
        return f"{told}, after {where}" + (f", while saving {saving[0]}" if saving else "")


def outcome(workdir: Path) -> dict:
    """Digests of all final parameters, and what was measured."""
    manifests = sorted((workdir / "stages").rglob("final/manifest.json"))
    digests = {str(m.relative_to(workdir)): json.loads(m.read_text())["digest"] for m in manifests}
    results = json.loads((workdir / "results.json").read_text())
    return {"digests": digests, "results": results["results"], "summary": results["summary"]}


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--workdir", type=lambda path: Path(path).absolute(), required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given, settings = parser.parse_known_args()
    given.workdir.mkdir(parents=True)  # an old one would be read, not run
    soak = Soak(given.workdir, settings or TINY, random.Random(given.seed))
    seconds = soak.undisturbed(given.workdir / "undisturbed")
    expected = outcome(given.workdir / "undisturbed")
    print(f"undisturbed: {seconds:.0f} s, {len(expected['digests'])} checkpoints", flush=True)
    kills, runs = 0, 0
    while True:
        workdir, runs = given.workdir / f"stopped_{runs}", runs + 1
        while kills < given.kills and (where := soak.stop_once(workdir, seconds)):
            kills += 1
            print(f"{kills}: {where}", flush=True)
        if soak.start(workdir).wait():
            print(f"the last run failed: {workdir}.log")
            return 1
        same = outcome(workdir) == expected
        print(f"{workdir.name}: {'bit-identical' if same else 'DIFFERS'}", flush=True)
        if not same or kills == given.kills:
            return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
