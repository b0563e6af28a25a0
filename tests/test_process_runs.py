"""Whole runs of two processes: equal to one process, stopped, killed and gone on with."""

import contextlib
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from sdfp import checkpoint

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
TOGETHER = 60
"""Seconds within which a process must notice that the other one is gone."""


def start(
    workdir: Path, own: int, count: int, coordinator: str, *overrides: str
) -> subprocess.Popen:
    """One process of a run on 4 CPU devices."""
    flags = ["--coordinator", coordinator, "--num_processes", str(count), "--process_id", str(own)]
    environment = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(4 // count),
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # two processes must not share a folder
    }
    command = [sys.executable, "tests/tiny_process.py", "--config=tests/tiny_config.py"]
    return subprocess.Popen(
        [*command, "--config.parallel.devices=0", f"--workdir={workdir}", *overrides, *flags],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    workdir: Path,
    count: int = 2,
    number: int = 0,
    when: str = "",
    whom: int = 1,
    own: str = "",
    overrides: Sequence[str] = (),
) -> list:
    """Runs to the end, or sends process `whom` a signal once a file is in the work directory, or
    gives it an override of its `own`.

    Returns:
        (exit code, standard output, standard error, seconds since the signal) of each.
    """
    coordinator = address()
    of = lambda i: [*overrides, *([own] if own and i == whom else [])]
    processes = [start(workdir, i, count, coordinator, *of(i)) for i in range(count)]
    try:
        if when:
            wait_for(workdir / when, processes)
        if when and count > 1:
            # Whoever can connect to it can stop the run: not from other machines, where none are.
            assert listening(processes[0].pid, int(coordinator.split(":")[1])) == {"127.0.0.1"}
        sent = time.monotonic()
        if number:
            processes[whom].send_signal(number)
        found = []
        for process in processes:
            told = process.communicate(timeout=300)
            found.append((process.returncode, *told, time.monotonic() - sent))
        return found
    finally:
        for process in processes:
            process.kill()


def address() -> str:
    """For a coordinator."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def wait_for(path: Path, processes: Sequence[subprocess.Popen]) -> None:
    while not path.exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


def listening(pid: int, port: int) -> set[str]:
    """The addresses at which a process listens to a port."""
    own = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a file that it has closed by now
            own.add(str(path.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, _, at = local.partition(":")
            if state == "0A" and inode in own and int(at, 16) == port:
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                ip = ipaddress.ip_address(b"".join(words))
                found.add(str(getattr(ip, "ipv4_mapped", None) or ip))
    return found


def digests(workdir: Path) -> dict[str, str]:
    finals = sorted(workdir.glob("stages/**/final/manifest.json"))
    name = lambda path: path.parents[1].relative_to(workdir / "stages").as_posix()
    return {name(path): json.loads(path.read_text())["digest"] for path in finals}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An undisturbed run of two processes."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    assert [code for code, *_ in run(workdir)] == [0, 0]
    return workdir


def test_two_processes_leave_what_one_leaves(finished, tmp_path):
    ((code, *_),) = run(tmp_path / "one", count=1)
    assert code == 0
    assert digests(finished).keys() == digests(tmp_path / "one").keys()
    for stage in digests(finished):
        own, _ = checkpoint.restore(finished / "stages" / stage / "final")
        other, _ = checkpoint.restore(tmp_path / "one" / "stages" / stage / "final")
        own, other = checkpoint.flatten(own), checkpoint.flatten(other)
        assert own.keys() == other.keys()
        for name in own:
            np.testing.assert_allclose(own[name], other[name], rtol=1e-4, atol=1e-4)
    results = [
        json.loads((folder / "results.json").read_text()) for folder in (finished, tmp_path / "one")
    ]
    values = [[entry["value"] for entry in found["results"]] for found in results]
    np.testing.assert_allclose(*values, atol=1)
    assert [found["complete"] for found in results] == [True, True]


def test_only_the_first_one_speaks_and_writes(finished):
    found = run(finished)  # again: all of it is there, and handed to the second
    assert [code for code, *_ in found] == [0, 0]
    assert "finished, verified and read" in found[0][1]
    assert "read" not in found[1][1]
    assert (finished / "report.html").exists()


@pytest.mark.parametrize("whom", [0, 1])
def test_a_stop_of_one_is_a_stop_of_all_and_goes_on_bit_for_bit(finished, tmp_path, whom):
    workdir = tmp_path / "run"
    stopped = run(workdir, number=signal.SIGTERM, when="stages/pretrain/step_000000002", whom=whom)
    assert [code for code, *_ in stopped] == [143, 143], stopped
    assert [code for code, *_ in run(workdir)] == [0, 0]
    assert digests(workdir) == digests(finished)


def test_the_others_wait_for_the_save_of_the_first(tmp_path, monkeypatch):
    """SLURM, for one, stops the rest of a job where one process ends: for the first one, which
    saves, that would be the second signal, and the end of the save."""
    workdir = tmp_path / "run"
    monkeypatch.setenv("DIE_AT", "slow pretrain/step_000000002")
    coordinator = address()
    processes = [start(workdir, i, 2, coordinator) for i in range(2)]
    try:
        wait_for(workdir / "stages/pretrain/step_000000002.saving", processes)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        processes[1].wait(timeout=60)
        processes[0].send_signal(signal.SIGTERM)
        told = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    steps = sorted(path.name for path in workdir.glob("stages/pretrain/step_*"))
    assert (codes, steps[0]) == ([143, 143], "step_000000002"), told
    assert len(steps) == 2, steps  # that of the stop, too, and nothing unfinished


def test_texts_go_on_behind_a_finished_stage(tmp_path):
    """Their examples to look at are made of a stage that is read, not trained, by then."""
    rows = "".join(f"a {word} text,{word}\n" for word in ("dull", "good") * 8)
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + rows)
    workdir = tmp_path / "run"
    own = ("--config=configs/roberta_file.py:smoke", f"--config.data.dir={tmp_path}")
    when = "stages/further_pretrain/final"
    stopped = run(workdir, number=signal.SIGTERM, when=when, overrides=own)
    assert {code for code, *_ in stopped} <= {143, 134, -signal.SIGABRT}, stopped
    found = run(workdir, overrides=own)
    assert [code for code, *_ in found] == [0, 0], found
    assert (workdir / "stages/further_pretrain/reconstructions.txt").is_file()


@pytest.mark.parametrize("whom", [0, 1])
def test_a_process_that_is_killed_ends_the_other_and_the_run_goes_on(finished, tmp_path, whom):
    workdir = tmp_path / "run"
    when = "stages/self_distill_1/metrics.jsonl"
    killed = run(workdir, number=signal.SIGKILL, when=when, whom=whom)
    code, _, told, seconds = killed[1 - whom]
    assert code not in (0, 1, 2)
    assert seconds < TOGETHER
    assert "another task died" in told or "Gloo" in told
    assert [code for code, *_ in run(workdir)] == [0, 0]
    assert digests(workdir) == digests(finished)


@pytest.mark.parametrize("whom", [0, 1])
def test_a_signal_outside_of_a_stage(tmp_path, whom):
    """Here while the data is read. Nobody waits for ever, and nobody says that it is a fault."""
    workdir = tmp_path / "run"
    stopped = run(workdir, number=signal.SIGTERM, when="lock", whom=whom)
    assert stopped[whom][0] == 143, stopped
    assert stopped[1 - whom][0] in (143, 134, -signal.SIGABRT), stopped
    assert max(seconds for *_, seconds in stopped) < TOGETHER


@pytest.mark.parametrize("key", ["seed=1", "data.split_seed=1"])
def test_processes_that_would_not_compute_the_same_are_refused(tmp_path, key):
    found = run(tmp_path / "run", own=f"--config.{key}")
    assert 2 in [code for code, *_ in found]
    assert not any(code == 0 for code, *_ in found)
    assert any("of process 1 is not that of process 0" in told for _, _, told, _ in found)
    assert not (tmp_path / "run" / "stages" / "pretrain").exists()


def test_a_mistake_that_one_process_finds_ends_all(tmp_path):
    (tmp_path / "run").write_text("no folder")
    found = run(tmp_path / "run")
    assert found[0][0] == 2
    assert "--workdir=" in found[0][2]
    assert found[1][0] not in (0, 1, 2)
    assert max(seconds for *_, seconds in found) < TOGETHER
