"""SIGTERM, SIGINT and SIGHUP."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sdfp import cli, signals
from sdfp.train import kept

ROOT = Path(__file__).parents[1]
START = """
import hashlib, sys, time
from sdfp import cli, signals

def run():
    with signals.handled({handled}):
        {body}

def ready():
    print("ready", flush=True)

def saved():
    print("saved", flush=True)

sys.exit(cli.exit_code(run))
"""
WAITS = "ready(); time.sleep(60)"
WORKS = """
        with signals.deferred():
            ready()
            while not signals.asked():
                time.sleep(0.01)
            saved()
        print("never")
"""
HANGS = """
        with signals.deferred():
            ready()
            while True:
                time.sleep(0.01)
"""
SAVES = """
        signals.GRACE = 0.5
        with signals.deferred(), signals.saving():
            ready()
            time.sleep(2)
            saved()
"""
WITHOUT_DISK = """
        import os
        def gone():
            raise OSError(30, "Read-only file system")
        with signals.deferred(), signals.before_exit(gone):
            os.close(2)  # nobody listens any more, either
            ready()
            time.sleep(60)
"""
IN_COMPILED_CODE = """
        signals.GRACE = 1
        ready()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


class Process:
    """Python that is at `body` within `signals.handled`."""

    def __init__(self, body, *before, handled=""):
        text = START.format(body=body.strip(), handled=handled)
        command = [*before, sys.executable, "-c", text]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def send(self, number):
        self.process.send_signal(number)

    def end(self):
        """(exit code, what it printed, its errors, how long it took)."""
        began = time.monotonic()
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err, time.monotonic() - began


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_it_stops_where_nothing_is_to_be_saved(number, code):
    process = Process(WAITS)
    process.send(number)
    found, _, err, _ = process.end()
    assert found == code
    last = f"sdfp: stopped by {number.name}; the same command goes on from where it was"
    assert err.splitlines()[1:] == [last]


def test_a_tool_that_handles_none(capsys):
    def tool():
        raise KeyboardInterrupt

    assert cli.exit_code(tool) == 130
    assert capsys.readouterr().err == "sdfp: interrupted\n"


def stumbles():
    try:
        raise signals.Interrupted(signal.SIGTERM)
    finally:
        raise RuntimeError("cannot release un-acquired lock")


def test_what_a_library_makes_of_a_signal_is_a_stop_and_is_shown(capsys):
    assert cli.exit_code(stumbles) == 143
    told = capsys.readouterr().err
    assert "RuntimeError: cannot release un-acquired lock" in told
    assert told.splitlines()[-1].startswith("sdfp: stopped by SIGTERM")


def test_it_is_a_stop_where_nobody_reads_it(monkeypatch):
    """The terminal is gone: SIGHUP."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as gone:  # by lines, as stderr
        monkeypatch.setattr(sys, "stderr", gone)
        assert cli.exit_code(stumbles) == 143


@pytest.mark.parametrize("error", [ValueError("ours"), OSError("ours")])
def test_an_error_without_a_signal_is_raised(error):
    def tool():
        try:
            raise KeyError("another")
        except KeyError:
            raise error  # noqa: B904

    with pytest.raises(type(error), match="ours"):
        cli.exit_code(tool)


def test_it_finishes_and_saves_first():
    process = Process(WORKS)
    process.send(signal.SIGTERM)
    assert process.end()[:2] == (143, "saved\n")


def test_a_second_signal_ends_it_at_once():
    process = Process(HANGS)
    process.send(signal.SIGINT)
    time.sleep(4 * signals.TWICE)
    assert process.process.poll() is None
    process.send(signal.SIGINT)
    code, _, err, seconds = process.end()
    assert (code, seconds < 5) == (130, True)
    assert "without a save" in err


def test_a_save_may_take_longer_than_the_grace():
    process = Process(SAVES)
    process.send(signal.SIGTERM)
    assert process.end()[:2] == (143, "saved\n")


def test_what_fails_at_the_end_does_not_keep_it_from_ending():
    process = Process(WITHOUT_DISK)
    for _ in range(2):
        process.send(signal.SIGTERM)
        time.sleep(4 * signals.TWICE)
    code, _, _, seconds = process.end()
    assert (code, seconds < 5) == (143, True)


def test_one_signal_sent_twice_is_one():
    """As `timeout` does: to the process, and to its group."""
    process = Process(WORKS.replace("saved()", "time.sleep(1); saved()"))
    for _ in range(3):
        process.send(signal.SIGTERM)
    assert process.end()[:2] == (143, "saved\n")


def test_it_does_not_wait_for_compiled_code():
    """Python's handlers wait until that returns: here a minute and more."""
    process = Process(IN_COMPILED_CODE)
    process.send(signal.SIGTERM)
    code, _, err, seconds = process.end()
    assert (code, seconds < 10) == (143, True)
    assert "the same command goes on" in err.splitlines()[-1]


def test_an_ignored_signal_stays_ignored():
    process = Process(WORKS, "sh", "-c", "trap '' INT; exec \"$@\"", "sh")
    process.send(signal.SIGINT)
    time.sleep(0.5)
    assert process.process.poll() is None
    process.send(signal.SIGTERM)
    assert process.end()[:2] == (143, "saved\n")


def work(*, error=None):
    """Is asked to stop, hears it, and fails then."""
    with signals.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert signals.asked()
        if error:
            raise error


def test_an_error_while_it_is_asked_to_stop():
    """Whoever goes on after the error is stopped at the next stage; a failed save is told."""
    with signals.handled():
        with pytest.raises(ValueError, match="full"):
            work(error=ValueError("full"))
        with pytest.raises(signals.Interrupted) as caught, signals.deferred():
            raise AssertionError("not reached")
        assert caught.value.code == 143


def test_everything_is_put_back():
    numbers = signals.SIGNALS
    before = [signal.getsignal(number) for number in numbers]
    for _ in range(2):
        with pytest.raises(signals.Interrupted), signals.handled(), signals.handled():
            work()
    assert [signal.getsignal(number) for number in numbers] == before
    with signals.deferred():  # where nothing is handled
        assert not signals.asked()


def test_a_signal_at_the_end_of_a_stage_loses_none_of_it(tmp_path):
    """It comes behind the last step, and before anything of what the stage made is on disk."""

    def make(directory):
        signal.raise_signal(signal.SIGTERM)
        return {"a": np.ones(2, np.float32)}, {}

    card = {"family": "", "settings": {}, "input": {"kind": ""}, "class_names": []}
    with pytest.raises(signals.Interrupted) as caught, signals.handled():
        kept.keep(tmp_path, "s", {}, card, make)
    assert caught.value.agreed
    assert not kept.keep(tmp_path, "s", {}, card, make).new


def test_before_the_first_step_of_a_stage_it_stops_at_once(tmp_path):
    """As where a checkpoint is read, or a table of the teacher made: that may take minutes."""

    def make(directory):
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("not stopped")

    def wrapped(directory):
        with signals.at_once():
            make(directory)

    card = {"family": "", "settings": {}, "input": {"kind": ""}, "class_names": []}
    with pytest.raises(signals.Interrupted) as caught, signals.handled():
        kept.keep(tmp_path, "s", {}, card, wrapped)
    assert not caught.value.agreed
    with signals.at_once():  # where nothing is handled
        pass


def test_a_process_that_does_not_save_waits_for_the_one_that_does():
    body = HANGS.replace("with signals", "signals.GRACE = 0.5\n        with signals")
    process = Process(body, handled="False")
    process.send(signal.SIGTERM)
    time.sleep(2)
    assert process.process.poll() is None
    process.send(signal.SIGTERM)
    assert process.end()[0] == 143
