"""A pipe or a terminal whose reader goes: the run trains, saves and ends as if it were there."""

import contextlib
import errno
import os
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from sdfp import cli

ROOT = Path(__file__).parents[1]
SHORT = ("methods=('finetune',)", "init.kind=scratch", "stages.finetune.steps=4")
OFTEN = "run.probe_every=1"  # a line for each


def started(workdir, out, err, *overrides) -> subprocess.Popen:
    command = [sys.executable, "-m", "sdfp.main", f"--config={ROOT}/tests/tiny_config.py"]
    command += [f"--workdir={workdir}", *(f"--config.{line}" for line in (*SHORT, *overrides))]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=err)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_run_goes_on(tmp_path, kind):
    """A terminal shows its errors and the bar, too."""
    read, write = os.openpty() if kind == "terminal" else os.pipe()
    with (tmp_path / "err").open("wb") as err:
        process = started(tmp_path / "w", write, write if kind == "terminal" else err, OFTEN)
    os.close(write)
    assert os.read(read, 4) == b"sdfp"
    os.close(read)
    assert process.wait(300) == 0
    assert (tmp_path / "err").read_bytes() == b""
    assert (tmp_path / "w" / "results.json").is_file()
    assert (tmp_path / "w" / "report.html").is_file()


def test_a_bar_goes_on_without_a_reader_of_the_lines(tmp_path):
    """`... | head` on a terminal."""
    read, write = os.pipe()
    os.close(read)
    screen, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))  # a bar of no width is not shown
    process = started(tmp_path, write, terminal, OFTEN)
    os.close(write)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the end of a terminal
        while some := os.read(screen, 2**16):
            shown += some
    os.close(screen)
    assert process.wait(300) == 0
    assert b"4/4" in shown
    assert b"Error" not in shown


def test_a_mistake_keeps_its_exit_code(tmp_path):
    read, write = os.pipe()
    os.close(read)
    process = started(tmp_path, write, write, "seed=-1")
    os.close(write)
    assert process.wait(300) == 2


def test_what_else_fails_is_told():
    """Of a full disk, say, nobody should learn from the end of a log."""
    with pytest.raises(OSError, match="full"), cli.reader_may_go(sys.stdout):
        raise OSError(errno.ENOSPC, "full")
