"""One run per work directory."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdfp import config, experiment, lock, signals
from sdfp.types import UserError

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from sdfp import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def take(workdir):
    with lock.held(workdir):
        return json.loads((workdir / lock.NAME).read_text())


def die(workdir):
    """As a run that is killed: its lock is dropped, and the file left. Returns its `deaths`."""
    found = take(workdir)
    (workdir / lock.NAME).write_text(json.dumps(found))
    return found["deaths"]


def save(workdir, name):
    (workdir / "stages" / name).mkdir(parents=True)
    (workdir / "stages" / name / "manifest.json").write_text("{}")


def test_runs_that_die_and_save_nothing_have_an_end(tmp_path):
    assert [die(tmp_path) for _ in range(lock.DEATHS)] == list(range(lock.DEATHS))
    for _ in range(2):
        with pytest.raises(UserError, match=f"the last {lock.DEATHS} runs died here") as caught:
            take(tmp_path)
    assert str(caught.value).endswith(f"delete {tmp_path / lock.NAME}")
    (tmp_path / lock.NAME).unlink()
    assert take(tmp_path)["deaths"] == 0


def test_a_run_that_dies_after_a_save_has_come_further(tmp_path):
    for step in range(2 * lock.DEATHS):
        assert [die(tmp_path), die(tmp_path)] == [0, 1]
        save(tmp_path, f"pretrain/step_{step:09d}")
    save(tmp_path, "pretrain/final")
    assert die(tmp_path) == 0


def test_a_run_that_ends_with_an_error_did_not_die(tmp_path):
    """It has said what is wrong. One that ends because another process is gone, did."""
    for error in (UserError("mistake"), ValueError("fault"), KeyboardInterrupt()):
        die(tmp_path)
        with pytest.raises(type(error)), lock.held(tmp_path):
            raise error
        assert take(tmp_path)["deaths"] == 0


@pytest.mark.parametrize("several", [True, False])
def test_a_run_that_lost_another_process_died(tmp_path, monkeypatch, several):
    """It fails with an error, but not of its own; alone it has nobody to lose."""
    monkeypatch.setattr(lock.hosts, "several", lambda: several)
    with pytest.raises(ValueError, match="Gloo"), lock.held(tmp_path):
        raise ValueError("INTERNAL: Gloo all-reduce failed: Connection closed by peer")
    assert (tmp_path / lock.NAME).exists() == several
    assert take(tmp_path)["deaths"] == several


def test_what_follows_a_death_does_not_hide_it(tmp_path):
    """As the report, which is written also of a run that lost another process."""
    for deaths in range(3):
        assert die(tmp_path) == deaths
        with lock.held_behind(tmp_path), pytest.raises(lock.Busy):
            take(tmp_path)
    (tmp_path / lock.NAME).unlink()
    with lock.held_behind(tmp_path), pytest.raises(lock.Busy, match="just begun"):
        take(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_mended_command_starts_to_count_anew(tmp_path, monkeypatch):
    """And what is no number, a hand or a damaged disk has written."""
    assert [die(tmp_path) for _ in range(3)] == [0, 1, 2]
    monkeypatch.setattr(lock.report, "command", lambda: "with a smaller batch")
    assert die(tmp_path) == 0
    found = json.loads((tmp_path / lock.NAME).read_text())
    (tmp_path / lock.NAME).write_text(json.dumps({**found, "deaths": "many"}))
    assert take(tmp_path)["deaths"] == 0


def test_to_be_stopped_at_once_is_no_death(tmp_path):
    """A second Ctrl-C ends the process without a clean end."""
    with lock.held(tmp_path):
        (act,) = signals._before_exit
        act()
        assert list(tmp_path.iterdir()) == []
    assert signals._before_exit == []


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path, holder):
    """Another process; and its lock, which a kill leaves behind, keeps nobody out."""
    before = (tmp_path / lock.NAME).read_text()
    with pytest.raises(UserError) as caught:
        experiment.run(config.read(str(ROOT / "tests/tiny_config.py")), tmp_path)
    line = str(caught.value)
    assert line.startswith(f"--workdir={tmp_path}: another run is at work in it: process ")
    assert f"process {holder.pid} on {os.uname().nodename}, since 20" in line
    assert "\n" not in line
    assert (tmp_path / lock.NAME).read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    holder.kill()
    holder.wait()
    assert (tmp_path / lock.NAME).exists()
    assert take(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_lock_that_tells_nothing(tmp_path, content):
    (tmp_path / lock.NAME).write_text(content)
    with (tmp_path / lock.NAME).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is at work in it: it has just begun"):
            take(tmp_path)
    assert take(tmp_path)["pid"] == os.getpid()


def test_a_lock_that_is_a_link(tmp_path):
    """What it leads to is not written over."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / lock.NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="lock: a link"):
        take(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_folders_that_are_made_for_nothing_are_removed(tmp_path):
    (tmp_path / "own").mkdir()
    for hold in (lock.held, lock.held_behind):
        with hold(tmp_path / "own" / "a" / "b"):
            assert (tmp_path / "own" / "a" / "b" / lock.NAME).exists()
        assert list((tmp_path / "own").iterdir()) == []
        with hold(tmp_path / "own" / "a" / "b"):
            (tmp_path / "own" / "a" / "b" / "kept").touch()
        assert (tmp_path / "own" / "a" / "b" / "kept").exists()
        shutil.rmtree(tmp_path / "own" / "a")


def test_a_lock_that_is_removed_between_opening_and_locking(tmp_path, monkeypatch):
    """By its last holder: what is locked then is no file of the directory any more."""
    path, removed = tmp_path / lock.NAME, []

    def flock(file, how, flock=fcntl.flock):
        if not removed:
            removed.append(path.unlink())
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock.held(tmp_path), pytest.raises(UserError, match="another run"):
        take(tmp_path)
    assert removed == [None]


def test_without_locks_it_is_told(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    take(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith(f"warning: {tmp_path / lock.NAME}: no locks on this file system (No loc")
