"""A disk that is full, in part or from the start: one line, exit code 2, nothing lost."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sdfp import checkpoint, cli, config, experiment, preflight
from sdfp.train.saver import Saver
from sdfp.types import UserError, WorkdirError

ROOT = Path(__file__).parents[1]
SMALL = {"a": np.zeros(3, np.float32)}
LARGE = {"a": np.random.default_rng(0).normal(size=2**20)}  # 8 MiB that cannot be made smaller


@contextlib.contextmanager
def limit(size):
    """No file may be larger: to a program that is as if the disk were full."""
    before, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def mounted(folder, options):
    """A file system of its own; the test is skipped where that takes rights."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.getuid() or not shutil.which("mount") or subprocess.run(command, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_save_that_does_not_fit(tmp_path, capfd):
    """What was saved before is whole, and nothing of the new one is left."""
    checkpoint.save_step(tmp_path, 2, SMALL, {})
    with limit(2**20), pytest.raises(WorkdirError) as caught:
        checkpoint.save_step(tmp_path, 4, LARGE, {})
    assert str(caught.value).startswith(
        f"{tmp_path / 'step_000000004'}: cannot be saved (File too large); what was saved before "
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000002"]
    assert checkpoint.restore_step(tmp_path, SMALL)[1]["step"] == 2
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_small_disk(tmp_path, capsys):
    folder = tmp_path / "disk"
    with mounted(folder, "size=6m"):
        checkpoint.save_step(folder, 2, SMALL, {})
        with pytest.raises(WorkdirError, match="No space left on device"):
            checkpoint.save_step(folder, 4, LARGE, {})
        assert checkpoint.restore_step(folder, SMALL)[1]["step"] == 2
        with pytest.raises(UserError, match=r"0.092 GB are needed for .* of 2 stages, 0.006"):
            preflight.check_space(folder, {"encoder": LARGE}, ("pretrain", "finetune/a/seed_0"))
        checkpoint.save(folder / "stages/pretrain/final", SMALL, {})
        checkpoint.save(folder / "stages/finetune/a/seed_0/final", SMALL, {})
        preflight.check_space(folder, {"encoder": LARGE}, ("pretrain", "finetune/a/seed_0"))
        with (folder / "full").open("wb") as file, contextlib.suppress(OSError):
            file.write(bytes(2**23))
        raw = config.read(str(ROOT / "tests/tiny_config.py"))
        assert cli.exit_code(lambda: experiment.run(raw, folder)) == 2
        assert "No space left on device" in capsys.readouterr().err


def test_a_disk_for_reading_only(tmp_path):
    folder = tmp_path / "disk"
    raw = config.read(str(ROOT / "tests/tiny_config.py"))
    with mounted(folder, "ro"):
        for workdir in (folder, folder / "deep" / "work"):
            with pytest.raises(UserError) as caught:
                experiment.run(raw, workdir)
            told = f"--workdir={workdir}: cannot be written (Read-only file system)"
            assert str(caught.value) == told


def test_a_trial_save(tmp_path, monkeypatch):
    preflight.check_workdir(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with limit(10), pytest.raises(UserError, match=r"^--workdir=.*: a trial save: .*File too lar"):
        preflight.check_workdir(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_thread_could_not_save_is_raised(tmp_path, capsys):
    with limit(2**20):
        with Saver() as saver:
            saver.save(tmp_path, 2, SMALL, {})
            saver.save(tmp_path, 4, LARGE, {})
            with pytest.raises(WorkdirError, match="cannot be saved"):
                saver.save(tmp_path, 6, SMALL, {})
            saver.save(tmp_path, 8, SMALL, {})
        assert checkpoint.last_step(tmp_path) == 8  # left: it is on the disk
        with pytest.raises(WorkdirError, match="cannot be saved"), Saver() as saver:
            saver.save(tmp_path, 10, LARGE, {})
        with pytest.raises(KeyError):
            fail(tmp_path)
    assert "warning: " in capsys.readouterr().out
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == ["step_000000002", "step_000000008"]


def fail(directory):
    """With a save that fails, too: what ended the training comes first."""
    with Saver() as saver:
        saver.save(directory, 12, LARGE, {})
        raise KeyError


def test_a_state_may_be_overwritten_while_it_is_saved(tmp_path, monkeypatch):
    """As the next call does with the devices' memory, which a CPU shows as an array."""
    save, state = checkpoint.save_step, {"a": np.zeros(3)}

    def later(*arguments):
        state["a"][:] = 7
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save_step", later)
    with Saver() as saver:
        saver.save(tmp_path, 2, state, {})
    assert not checkpoint.restore_step(tmp_path, state)[0]["a"].any()


@pytest.mark.parametrize("code", cli.DISK)
def test_a_full_disk_anywhere_is_one_line(code, capsys):
    def write():
        raise OSError(code, os.strerror(code), "metrics.jsonl")

    assert cli.exit_code(write) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sdfp: [Errno")
    assert "'metrics.jsonl'" in line


def test_other_errors_of_the_disk_are_ours():
    def read():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        cli.exit_code(read)
