"""A run that is stopped at random moments, of a save in particular, each time followed by the same
command: in the end the same bits as undisturbed.

    python tests/soak/kill_resume.py --kills 10 --terms 10 --workdir /tmp/kill_resume
    python tests/soak/kill_resume.py --kills 5 --terms 5 --processes 2 --workdir /tmp/kill_resume_2

--kills are SIGKILL, --terms SIGTERM, in an order by chance; of two processes either one gets it. A
line for each: when, whom, what the run had said last, how it ended, and how the next one went on. A
run that comes to its end before all of them are done is compared, and another one begun. Exits with
1 where anything differs or an exit code is not the one that is promised. By default a tiny model (a
quarter of a minute per kill on 2 idle cores); what else is given goes to sdfp.main, as for a small
ViT on real images:

    ... --config=configs/vit_cub.py:small --config.data.dir=/data/cub
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
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
TOGETHER = 90.0
"""Seconds within which a process must end when another one is gone; a busy machine's."""
DEVICES = 2
"""Of all processes, where there are several."""


def listens(process: subprocess.Popen) -> bool:
    """Whether SIGTERM reaches a handler. Before it does (python starts, the processes join), it
    ends a process as any other."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return False
    (caught,) = (line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def wrong(what: str) -> SystemExit:
    print(what)
    return SystemExit(1)


class Soak:
    """One command, in work directories below `folder`."""

    def __init__(self, folder: Path, settings: list[str], processes: int, rng: random.Random):
        self.folder, self.settings, self.rng = folder, settings, rng
        self.processes = processes
        self.told_before = 0
        """Length of the first process's log before the run that is going on."""

    def log(self, workdir: Path, own: int = 0) -> Path:
        return self.folder / f"{workdir.name}_{own}.log"

    def start(self, workdir: Path) -> list[subprocess.Popen]:
        log = self.log(workdir)
        self.told_before = log.stat().st_size if log.exists() else 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        environment = dict(os.environ)
        several = [[]]
        if self.processes > 1:
            environment["JAX_NUM_CPU_DEVICES"] = str(DEVICES // self.processes)
            flags = ["--config.parallel.devices=0", f"--coordinator={coordinator}"]
            flags += [f"--num_processes={self.processes}"]
            several = [[*flags, f"--process_id={own}"] for own in range(self.processes)]
        environment["JAX_COMPILATION_CACHE_DIR"] = str(self.folder / "programs")
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        command = [sys.executable, "-m", "sdfp.main", *self.settings, f"--workdir={workdir}"]
        started = []
        for own, more in enumerate(several):
            with self.log(workdir, own).open("a") as file:
                how = {"cwd": ROOT, "env": environment, "stdout": file, "stderr": file}
                started.append(subprocess.Popen([*command, *more], **how))
        return started

    def to_the_end(self, workdir: Path) -> None:
        codes = [process.wait() for process in self.start(workdir)]
        if any(codes):
            raise wrong(f"exit codes {codes} without a signal: see {self.log(workdir)}")

    def undisturbed(self, workdir: Path) -> float:
        """Runs to the end. Returns the seconds of a second time, with everything compiled."""
        for _ in range(2):
            shutil.rmtree(workdir, ignore_errors=True)
            began = time.monotonic()
            self.to_the_end(workdir)
        return time.monotonic() - began

    def stop_once(self, workdir: Path, longest: float, number: signal.Signals) -> str | None:
        """Starts, and stops at a random moment. Returns what was done; None if the run ended
        before."""
        began, processes = time.monotonic(), self.start(workdir)
        in_save = self.rng.random() < 0.4
        until = began + self.rng.uniform(0.1 * longest, 1.2 * longest)
        running = lambda: all(process.poll() is None for process in processes)
        while running() and time.monotonic() < until:
            # Not what the kill before left: that is gone when a stage begins.
            if in_save and self.trains(workdir) and any(workdir.glob("stages/**/*.saving")):
                time.sleep(self.rng.uniform(0, 0.2))
                break
            time.sleep(0.002)
        if not running():
            codes = [process.wait(timeout=TOGETHER) for process in processes]
            if any(codes):
                raise wrong(f"exit codes {codes} without a signal: see {self.log(workdir)}")
            return None
        whom = self.rng.randrange(len(processes))
        saving = [path.name for path in workdir.glob("stages/**/*.saving")]
        when, doing = time.monotonic() - began, (self.said(workdir) or ["no word"])[-1].strip()
        codes = self.send(processes, whom, number)
        return (
            f"{when:.1f} s: {number.name} to process {whom} after '{doing}'"
            + (f", while saving {saving[0]}" if saving and self.trains(workdir) else "")
            + f" -> {codes} in {time.monotonic() - began - when:.1f} s"
        )

    def send(self, processes: list[subprocess.Popen], whom: int, number: signal.Signals) -> list:
        """Sends the signal. Returns the exit codes, once they are found to be as promised."""
        joined = all(listens(process) for process in processes)
        expected = {-signal.SIGKILL}
        if number == signal.SIGTERM:
            # 0: it was at its very end.
            expected = {143} if listens(processes[whom]) else {0, 143, -signal.SIGTERM}
        processes[whom].send_signal(number)
        code = processes[whom].wait(timeout=LONGEST)
        if code not in expected:
            raise wrong(f"exit code {code} after {number.name}, not {expected}")
        for other in processes:
            if not joined:  # it waits for the others to come, for minutes
                other.kill()
            if joined and other.wait(timeout=TOGETHER) in (0, 1, 2):
                raise wrong(f"exit code {other.returncode} after {number.name} to another process")
        return [process.wait() for process in processes]

    def said(self, workdir: Path) -> list[str]:
        """The lines of the first process's last run."""
        return self.log(workdir).read_bytes()[self.told_before :].decode().splitlines()

    def trains(self, workdir: Path) -> str | None:
        """What the last run said when it went on with its first stage, or began it."""
        lines = (line for line in self.said(workdir) if ": " in line)
        return next((x for x in lines if ": goes on after step" in x or " steps of " in x), None)

    def resumed(self, workdir: Path) -> str:
        read = sum(x.endswith(": finished, verified and read") for x in self.said(workdir))
        return f"{read} stages read, {self.trains(workdir) or 'none trained'}"


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
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=0)
    given, settings = parser.parse_known_args()
    given.workdir.mkdir(parents=True)  # an old one would be read, not run
    rng = random.Random(given.seed)
    soak = Soak(given.workdir, settings or TINY, given.processes, rng)
    seconds = soak.undisturbed(given.workdir / "undisturbed")
    expected = outcome(given.workdir / "undisturbed")
    print(f"undisturbed: {seconds:.0f} s, {len(expected['digests'])} checkpoints", flush=True)
    signals = [signal.SIGKILL] * given.kills + [signal.SIGTERM] * given.terms
    rng.shuffle(signals)
    done, runs = 0, 0
    while True:
        workdir, runs, told = given.workdir / f"stopped_{runs}", runs + 1, None
        while done < len(signals):
            before, told = told, soak.stop_once(workdir, seconds, signals[done])
            if before:
                print(f"{before}; then {soak.resumed(workdir)}", flush=True)
            if told is None:
                break
            done += 1
            told = f"{done}: {told}"
        if told is not None:
            soak.to_the_end(workdir)
            print(f"{told}; then {soak.resumed(workdir)}", flush=True)
        same = outcome(workdir) == expected
        print(f"{workdir.name}: {'bit-identical' if same else 'DIFFERS'}", flush=True)
        if not same or done == len(signals):
            return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
