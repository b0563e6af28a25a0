"""The cache of decoded images: used when it can be trusted, rebuilt when not."""

import dataclasses
import os
import stat

import numpy as np
import pytest
from data_helpers import reds, settings, write_classes, write_image

from sdfp.data import image_folder, images
from sdfp.types import UserError


@pytest.fixture
def cached(tmp_path):
    folder = tmp_path / "set"
    write_classes(folder / "train", {"a": 3, "b": 3})
    write_classes(folder / "test", {"a": 1, "b": 1}, first=50)
    (folder / "train" / "a" / "001.png").write_bytes(b"broken")
    return folder, settings(folder, cache_dir=str(tmp_path / "sub" / "cache"), max_broken=1)


def count_decodes(monkeypatch) -> list:
    calls, original = [], images.cache.decode.decode
    monkeypatch.setattr(
        images.cache.decode, "decode", lambda *args: (calls.append(1), original(*args))[1]
    )
    return calls


def test_cache_is_written_once_and_used_again(cached, monkeypatch):
    _, wanted = cached
    calls = count_decodes(monkeypatch)
    first, second = image_folder.load(wanted), image_folder.load(wanted)
    in_memory = image_folder.load(dataclasses.replace(wanted, cache_dir=""))
    assert len(calls) == 16
    assert isinstance(second.train.arrays["image"], np.memmap)
    assert second.notes == first.notes
    assert "train/a/001.png" in second.notes["broken"]
    assert first.fingerprint == second.fingerprint == in_memory.fingerprint
    assert reds(second.train) == [0, 2, 3, 4, 5]
    cache_dir = os.path.dirname(second.notes["cache"])
    assert stat.S_IMODE(os.stat(cache_dir).st_mode) == 0o700
    assert len(os.listdir(cache_dir)) == 2  # no scratch left


def test_cache_is_rebuilt_when_a_file_or_a_setting_changes(cached):
    folder, wanted = cached
    before = image_folder.load(wanted)
    write_image(folder / "train" / "a" / "000.png", 99)
    os.utime(folder / "train" / "a" / "000.png", ns=(1, 1))
    after = image_folder.load(wanted)
    assert reds(after.train) == [99, 2, 3, 4, 5]
    larger = image_folder.load(dataclasses.replace(wanted, image_size=5))
    assert larger.train.arrays["image"].shape == (5, 5, 5, 3)
    assert len({d.notes["cache"] for d in (before, after, larger)}) == 3
    assert len({d.fingerprint for d in (before, after, larger)}) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda npy, js: npy.write_bytes(npy.read_bytes()[:-5]),
        lambda npy, js: npy.write_bytes(npy.read_bytes()[:-1] + b"\x11"),
        lambda npy, js: npy.write_bytes(b""),
        lambda npy, js: np.save(npy, np.zeros((3, 4, 4, 3), np.uint8)),
        lambda npy, js: npy.unlink(),
        lambda npy, js: js.write_text("{"),
        lambda npy, js: js.write_text("[]"),
        lambda npy, js: js.unlink(),
    ],
)
def test_a_damaged_cache_is_rebuilt(cached, damage, tmp_path):
    _, wanted = cached
    fingerprint = image_folder.load(wanted).fingerprint
    (npy,) = (tmp_path / "sub" / "cache").glob("*.npy")
    damage(npy, npy.with_suffix(".json"))
    data = image_folder.load(wanted)
    assert data.fingerprint == fingerprint
    assert reds(data.test) == [50, 51]


def test_a_cache_folder_that_cannot_be_made(cached, tmp_path):
    _, wanted = cached
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the image cache in .*cache_dir"):
        image_folder.load(dataclasses.replace(wanted, cache_dir=str(tmp_path / "file" / "x")))


def test_a_full_disk_is_refused_beforehand(cached, monkeypatch):
    _, wanted = cached
    full = lambda folder: type("usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", full)
    with pytest.raises(UserError, match=r"cannot write the image cache.*no room for 0\.0 GiB"):
        image_folder.load(wanted)
