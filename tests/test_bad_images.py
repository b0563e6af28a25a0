"""Bad files and folders: one line that names the culprit and says what to do, before any training.

Faults of a layout (no test split, CSV columns, ...) are in test_image_folder.py.
"""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_helpers import reds, settings, write_classes, write_image
from PIL import Image
from test_cub import write_cub

from sdfp import preflight
from sdfp.data import decode
from sdfp.data.registry import DATASETS
from sdfp.types import UserError

ROOT = Path(__file__).parents[1]


def refused(match, folder, name="image_folder", **changes) -> str:
    """What a run says when it loads the data set; nothing of it may reach the devices."""
    with pytest.raises(UserError, match=match) as caught:
        preflight.load_data("data", settings(folder, name=name, **changes), place=None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noise(file, kind, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind, **options)


def truncated(file, kind="JPEG"):
    noise(file, kind)
    file.write_bytes(file.read_bytes()[:-700])


def png(file, width, height, rows=0):
    """A PNG of one bit per pixel, with the given header, and `rows` rows that are there."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes((1 + (width + 7) // 8) * rows), 9)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def twelve_bits(file):
    Image.fromarray(np.full((5, 6), 4095, np.uint16)).save(file, "PNG")


BAD = {
    "truncated JPEG": (truncated, "truncated"),
    "truncated PNG": (lambda file: truncated(file, "PNG"), "truncated"),
    "zero bytes": (lambda file: file.write_bytes(b""), "an empty file"),
    "one byte": (lambda file: file.write_bytes(b"\xff"), "not an image"),
    "text": (lambda file: file.write_text("this is no image"), "not an image"),
    "HTML": (lambda file: file.write_text("<!DOCTYPE html><p>404"), "not an image"),
    "a claim of 30000 x 30000": (lambda file: png(file, 30000, 30000), "pixels: scale it down"),
    "a bomb of 113 MB": (lambda file: png(file, 30000, 30000, 30000), "pixels: scale it down"),
    "over the limit once": (lambda file: png(file, 10000, 10000, 10000), "pixels: scale it down"),
    "float TIFF": (lambda file: Image.new("F", (5, 6)).save(file, "TIFF"), "float pixels"),
    "12 bits in 16": (twelve_bits, "12-bit values"),
    "no size": (lambda file: png(file, 0, 0), ""),
    "only a header": (lambda file: png(file, 8, 8), ""),
    "a link to nothing": (lambda file: file.symlink_to("nowhere"), "no such file"),
}
"""How the file comes to be, and what is told of it."""


def spoil(file, make):
    file.unlink()
    make(file)


@pytest.mark.filterwarnings("default")  # as in a real run: a large image alone is a warning
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_among_class_folders(tmp_path, monkeypatch, bad):
    write_classes(tmp_path / "train", {"a": 5, "b": 5})
    write_classes(tmp_path / "test", {"a": 1, "b": 1}, first=50)
    make, why = BAD[bad]
    spoil(tmp_path / "train/b/002.png", make)
    told = refused(
        rf"^1 of 12 images are broken.*max_broken=0: train/b/002\.png \(.*{why}.*replace", tmp_path
    )
    assert "0x" not in told  # an address means nothing to anybody
    decoded = []
    original = decode.to_array
    monkeypatch.setattr(decode, "to_array", lambda i, *a: decoded.append(i.size) or original(i, *a))
    data = DATASETS["image_folder"].load(settings(tmp_path, max_broken=1))
    assert list(data.notes["broken"]) == ["train/b/002.png"]
    assert why in data.notes["broken"]["train/b/002.png"]
    assert reds(data.train) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert data.train.arrays["label"].tolist() == [0] * 5 + [1] * 4
    assert "train/b/002.png" not in data.train.ids
    assert max(decoded)[0] <= 40  # a bomb is refused by its header


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_of_a_layout_with_lists(tmp_path, bad):
    root = write_cub(tmp_path / "CUB_200_2011")
    make, why = BAD[bad]
    spoil(root / "images/001.Bird_1/Bird_2.jpg", make)
    refused(rf"^1 of 8 images are broken.*001\.Bird_1/Bird_2\.jpg \(.*{why}", tmp_path, "cub")
    data = DATASETS["cub"].load(settings(tmp_path, max_broken=1))
    assert list(data.notes["broken"]) == ["001.Bird_1/Bird_2.jpg"]
    assert reds(data.train) == [1, 5, 7]


def test_bad_files_in_test_count_too(tmp_path):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "test", {"a": 1, "b": 1}, first=50)
    spoil(tmp_path / "test/a/000.png", truncated)
    refused(r"^1 of 6 images .*max_broken=0: test/a/000\.png \(OSError: .*truncated", tmp_path)
    assert reds(DATASETS["image_folder"].load(settings(tmp_path, max_broken=1)).test) == [51]
    spoil(tmp_path / "test/b/000.png", truncated)
    refused("the test split is empty", tmp_path, max_broken=2)


def test_when_all_images_are_broken(tmp_path):
    for file in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("no image")
    told = refused(r"^4 of 4 images are broken", tmp_path)
    assert told.count("not an image") == 3  # the first three, then dots
    refused(rf"^no image to train on in .*{tmp_path}", tmp_path, max_broken=4)


def test_when_all_unlabelled_images_are_broken(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2, "unlabelled": 1})
    spoil(tmp_path / "unlabelled/000.png", truncated)
    refused(rf"^no unlabelled image in .*{tmp_path}", tmp_path, max_broken=1, test_fraction=0.5)


# --- folders and links


def test_not_a_folder(tmp_path):
    write_image(tmp_path / "file.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (tmp_path / "file.png", tmp_path / "nowhere", empty, "", "~nobody-here/x"):
        refused(r"^no (folder|images in) .*(config\.data\.dir|expected train)", folder)
        refused(r"^no .*set --config\.data\.dir.*data\.fetch cub", folder, "cub")


def test_a_cache_in_the_home_of_nobody(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    wanted = {"test_fraction": 0.5, "cache_dir": "~nobody-here/x"}
    refused(r"cache_dir=~nobody-here/x: no such home folder", tmp_path, **wanted)


def test_a_split_that_is_a_file(tmp_path):
    write_classes(tmp_path / "test", {"a": 1, "b": 1})
    (tmp_path / "train").write_text("a file")
    refused(r"^config\.data\.dir: cannot be read .*Not a directory.*train", tmp_path)


@pytest.mark.parametrize("to", ["..", ".", "../../train", "../b"])
def test_a_link_to_a_folder_above_or_beside(tmp_path, to):
    write_classes(tmp_path / "train", {"a": 2, "b": 2})
    write_classes(tmp_path / "test", {"a": 1, "b": 1}, first=50)
    (tmp_path / "train/a/link").symlink_to(to)
    if to == "../b":  # no loop, but the images of b would be of class a too
        assert len(DATASETS["image_folder"].load(settings(tmp_path)).train) == 6
    else:
        refused(r"train/a/link.* is a link to a folder that holds it: remove the link", tmp_path)


def test_a_link_to_itself(tmp_path):
    write_classes(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a/loop.png").symlink_to("loop.png")
    for cache_dir in ("", str(tmp_path / "cache")):
        refused(r"loop\.png", tmp_path, test_fraction=0.5, cache_dir=cache_dir)


def deny(monkeypatch, *places):
    """Tests may run as root, whom no mode stops."""

    def denying(original):
        def function(path, *args, **options):
            if Path(path) in places:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *args, **options)

        return function

    for owner, name in (
        (os, "scandir"),
        (os, "listdir"),
        (Path, "read_bytes"),
        (Path, "read_text"),
    ):
        monkeypatch.setattr(owner, name, denying(getattr(owner, name)))


DENIED = ["train", "train/a", "train/a/deeper", "unlabelled", "test/b"]


@pytest.mark.parametrize("folder", DENIED)
def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch, folder):
    """Left out without a word, it would be a smaller data set."""
    write_classes(tmp_path / "train", {"a/deeper": 2, "b": 2})
    write_classes(tmp_path / "test", {"a": 1, "b": 1})
    write_classes(tmp_path / "unlabelled", {"x": 2})
    deny(monkeypatch, tmp_path / folder)
    refused(rf"cannot (be )?read.*{tmp_path / folder}|{tmp_path / folder}.*denied", tmp_path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """No broken image: max_broken must not leave it out."""
    folder = write_classes(tmp_path / "set", {"a": 2, "b": 2})
    root = write_cub(tmp_path / "CUB_200_2011")
    deny(monkeypatch, folder / "a/000.png", root / "images.txt")
    wanted = {"test_fraction": 0.5, "max_broken": 9}
    refused(r"cannot read .*a/000\.png: Permission denied", folder, **wanted)
    refused(r"cannot read .*images\.txt: Permission denied", root, "cub")


# --- a real process


def test_a_truncated_photo_ends_a_real_run_with_one_line(tmp_path):
    write_classes(tmp_path / "set/train", {"a": 2, "b": 2})
    write_classes(tmp_path / "set/test", {"a": 1, "b": 1}, first=50)
    spoil(tmp_path / "set/train/a/001.png", truncated)
    command = [sys.executable, "-m", "sdfp.main", "--config", "configs/vit_folder.py:smoke"]
    command += [f"--config.data.dir={tmp_path}/set", f"--workdir={tmp_path}/run"]
    command += [f"--config.data.cache_dir={tmp_path}/cache"]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.splitlines()
    assert line.startswith("sdfp: 1 of 6 images are broken")
    assert "train/a/001.png (OSError: " in line
    assert not (tmp_path / "run" / "results.json").exists()
