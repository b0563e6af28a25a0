"""Paths that a user names, and what file systems cannot do."""

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from sdfp import checkpoint, config, experiment, pretrained, programs
from sdfp.data import tokenizer
from sdfp.types import UserError, WorkdirError

NOBODY = "~nobody_of_this_name/x"
TINY = str(Path(__file__).parent / "tiny_config.py")


def as_teacher(path):
    overrides = ["--config.methods=('kd',)", f"--config.method.kd.teacher={path}"]
    experiment.plan(config.read(TINY, overrides), experiment.CONFIG_ONLY)


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (as_teacher, f"config.method.kd.teacher={NOBODY}: there is nothing"),
        (pretrained.open_weights, f"{NOBODY}: no such file"),
        (tokenizer.open_tokenizer, f"{NOBODY}: no such file"),
        (programs.keep, f"config.run.compilation_cache={NOBODY}: no such home folder"),
    ],
)
def test_the_home_of_nobody(monkeypatch, tmp_path, read, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read(NOBODY)
    assert str(caught.value).startswith(told)
    assert list(tmp_path.iterdir()) == []


def refuse(monkeypatch, number, kind):
    """From now on the file system cannot flush what is of this kind."""

    def fsync(descriptor, fsync=os.fsync):
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


TREE = {"a": np.arange(3, dtype=np.float32)}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_folders(monkeypatch, tmp_path, number):
    refuse(monkeypatch, number, stat.S_ISDIR)
    checkpoint.save(tmp_path / "saved", TREE, {})
    np.testing.assert_array_equal(checkpoint.restore(tmp_path / "saved")[0]["a"], TREE["a"])


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EIO, stat.S_ISDIR), (errno.EINVAL, stat.S_ISREG)]
)
def test_what_did_not_reach_the_disk_is_no_save(monkeypatch, tmp_path, number, kind):
    """And leaves no file open."""
    refuse(monkeypatch, number, kind)
    with pytest.raises(WorkdirError, match=os.strerror(number)):
        checkpoint.save(tmp_path / "saved", TREE, {})
    opened = [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]
    assert not [path for path in opened if path.startswith(str(tmp_path))]
    assert not checkpoint.exists(tmp_path / "saved")
