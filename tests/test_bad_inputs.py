"""Malformed data: images, tables, texts, archives, pickles. Each is told in one line that names the
file and what to do; nothing is left half-written.

A table per kind: how the input comes to be, and what its user reads. Others are in
test_bad_inputs_models.py and test_bad_inputs_results.py; what one reader alone can find is in the
test file of that reader (test_image_folder.py, test_text_files.py, test_bad_images.py, ...).
"""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import text_helpers
from data_helpers import settings, write_classes, write_image
from PIL import Image
from test_cifar100 import Asks, content, write_cifar
from test_cub import write_cub

from sdfp.data import cache, cifar100, tfds
from sdfp.data.fetch import fetch
from sdfp.data.interface import Download
from sdfp.data.registry import DATASETS
from sdfp.types import UserError


def refused(match, call, *arguments, **options) -> str:
    """The line with which a call is refused."""
    with pytest.raises(UserError, match=match) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


# --- image files

NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)


def encoded(kind, image=None, **options) -> bytes:
    stream = io.BytesIO()
    (image or Image.fromarray(NOISE)).save(stream, kind, **options)
    return stream.getvalue()


def cut(kind):
    data = encoded(kind)
    return data[: len(data) * 2 // 3]


def with_text(size):
    """A PNG whose compressed remark is `size` bytes long."""
    data = encoded("PNG")
    name, body = b"zTXt", b"remark\0\0" + zlib.compress(bytes(size), 9)
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:33] + chunk + data[33:]  # behind the header


def jpeg_of_size(width, height):
    data = bytearray(encoded("JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff_of_size(width, height):
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, 10)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


IMAGES = {
    "a GIF cut short": (lambda: cut("GIF"), "truncated|broken|not enough"),
    "a TIFF cut short": (lambda: cut("TIFF"), ""),
    "a WebP cut short": (lambda: cut("WEBP"), ""),
    "a BMP cut short": (lambda: cut("BMP"), "truncated"),
    "a PPM cut short": (lambda: cut("PPM"), "truncated"),
    "a PPM of words": (lambda: b"P6 wide high 255\n" + bytes(99), ""),
    "a PPM of 10^12 pixels": (
        lambda: b"P6 1000000 1000000 255\n" + bytes(99),
        "pixels: scale it down",
    ),
    "a JPEG of 65500 x 65500": (lambda: jpeg_of_size(65500, 65500), "pixels: scale it down"),
    "a TIFF of 100000 x 100000": (lambda: tiff_of_size(100_000, 100_000), "pixels: scale it down"),
    "a remark that is a bomb": (lambda: with_text(10**8), "too large"),
    "an SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image in one of"),
    "an AVIF": (lambda: b"\0\0\0\x20ftypavif" + bytes(99), "not an image in one of"),
    "a zip": (lambda: b"PK\x03\x04" + bytes(99), "not an image in one of"),
    "a PDF": (lambda: b"%PDF-1.7\n" + bytes(99), "not an image in one of"),
    "an icon": (lambda: encoded("ICO"), "not an image in one of"),
}


@pytest.mark.filterwarnings("default")  # as in a real run
@pytest.mark.parametrize("bad", IMAGES)
def test_images(tmp_path, bad):
    make, why = IMAGES[bad]
    write_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "b/001.png").write_bytes(make())
    wanted = settings(tmp_path, test_fraction=0.5)
    told = rf"^1 of 6 images are broken.*max_broken=0: b/001\.png \(.*{why}.*replace"
    refused(told, DATASETS["image_folder"].load, wanted)


GOOD_IMAGES = {
    "animated GIF": lambda: encoded(
        "GIF", save_all=True, append_images=[Image.new("RGB", (40, 40))]
    ),
    "animated WebP": lambda: encoded(
        "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 40))]
    ),
    "one pixel": lambda: encoded("PNG", Image.new("RGB", (1, 1))),
    "20000 x 1": lambda: encoded("PNG", Image.new("RGB", (20_000, 1))),
    "CMYK": lambda: encoded("JPEG", Image.new("CMYK", (9, 9))),
    "16 bits": lambda: encoded("PNG", Image.fromarray(np.full((9, 9), 65535, np.uint16))),
}


@pytest.mark.parametrize("kind", GOOD_IMAGES)
def test_odd_images_that_are_good(tmp_path, kind):
    write_classes(tmp_path, {"a": 3, "x.jpg": 2})  # the latter a class of that name
    odd = tmp_path / "x.jpg" / "ö\udcff\n.png"  # not UTF-8, and with a line end
    odd.write_bytes(GOOD_IMAGES[kind]())
    data = DATASETS["image_folder"].load(settings(tmp_path, test_fraction=0.5))
    assert data.class_names == ("a", "x.jpg")
    assert "x.jpg/ö\udcff\n.png" in data.train.ids + data.test.ids
    assert data.notes["broken"] == {}


# --- folders and tables of images


def table(text):
    def make(folder):
        write_image(folder / "a.png")
        write_image(folder / "sub/b.png")
        (folder / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())

    return make


FOLDERS = {
    "a row with more fields": (
        table("path,label\na.png,cat, big\n"),
        {},
        r"train\.csv, line 2: more fields than .*double quotes",
    ),
    "one column twice": (table("path,label,label\na.png,x,y\n"), {}, r"line 1: 2 columns 'label'"),
    "a quote that never ends": (
        table('path,label\n"a.png,x\nsub/b.png,y\n'),
        {},
        "line 2: empty path",
    ),
    "a null character": (
        table("path,label\na\0.png,x\nb.png,y" + " " * 99),
        {},
        "line 2: no file a",
    ),
    "a folder in the table": (table("path,label\nsub,x\n"), {}, "line 2: no file sub in"),
    "semicolons": (table("path;label\na.png;x\n"), {}, "line 1: no column 'path' and 'label'.*';'"),
    "UTF-16": (table("path,label\na.png,x\n".encode("utf-16")), {}, "line 1: not UTF-8"),
    "a header and no row": (table("path,label\n"), {}, "no row below the first line"),
    "a table of one class": (
        table("path,label\na.png,x\nsub/b.png,x\n"),
        {},
        "at least two classes, the data set has 1",
    ),
    "one example per class, and a part of it to validate": (
        lambda folder: write_classes(folder, {"a": 1, "b": 1, "c": 1, "d": 1}),
        {"test_fraction": 0.25, "validation_fraction": 0.4},
        r"classes have no training example: ",
    ),
    "a class in test only": (
        lambda folder: [
            write_classes(folder / "train", {"a": 2, "b": 2}),
            write_classes(folder / "val", {"a": 1, "c": 1}),
        ],
        {},
        "validation has classes that train does not have: 'c'",
    ),
    "a budget below the classes": (
        lambda folder: write_classes(folder, {"a": 3, "b": 3}),
        {"test_fraction": 0.5, "train_labels": 1},
        "train_labels=1 must be at least the 2 classes and at most the 3",
    ),
}


@pytest.mark.parametrize("bad", FOLDERS)
def test_folders(tmp_path, bad):
    make, changes, why = FOLDERS[bad]
    make(tmp_path)
    refused(why, DATASETS["image_folder"].load, settings(tmp_path, **changes))


@pytest.mark.parametrize("path", ["../../../etc/x.jpg", "/etc/x.jpg", "001.Bird_1/../x.jpg"])
def test_lists_that_lead_out_of_their_folder(tmp_path, path):
    root = write_cub(tmp_path / "CUB_200_2011")
    listed = (root / "images.txt").read_text().splitlines()
    (root / "images.txt").write_text("\n".join([f"1 {path}", *listed[1:]]))
    refused("leads out of the folder", DATASETS["cub"].load, settings(tmp_path, name="cub"))


# --- texts

GOOD = '{"text": "one two", "label": "x"}\n{"text": "three", "label": "y"}\n'
TEXTS = {
    "UTF-16 without a mark": ("txt", "one\ntwo\n".encode("utf-16-le"), {}, "line 1: a null char"),
    "UTF-16": ("csv", "text,label\na,x\n".encode("utf-16"), {}, "line 1: not UTF-8"),
    "a null character": ("csv", "text,label\na,x\nb\0,y\n", {}, "line 3: a null character"),
    "a byte order mark alone": ("jsonl", b"\xef\xbb\xbf", {}, "no text in it"),
    "semicolons": ("csv", "text;label\na;x\n", {}, "no column 'text'.* separated by ';': separat"),
    "tabs in a .csv": ("csv", "text\tlabel\na\tx\n", {}, r"no column 'text'.* separated by '\\t'"),
    "a gzip": ("csv", gzip.compress(b"text,label\na,x\n"), {}, "line 1: not UTF-8"),
    "a list of objects": ("jsonl", "[" + GOOD.replace("\n", ",") + "]", {}, "line 1: not valid"),
    "a label that is no text": ("jsonl", GOOD + '{"text": "a", "label": NaN}', {}, "it is 'nan'"),
    "a label that is a list": ("jsonl", GOOD + '{"text": "a", "label": ["x"]}', {}, "line 3: 'lab"),
    "a label of 5,000 digits": (
        "jsonl", GOOD + '{"text": "a", "label": ' + "9" * 5000 + "}", {}, "line 3: not valid JSON",
    ),
    "a text that is a list": ("jsonl", '{"text": ["a"], "label": "x"}', {}, "must be a text"),
    "half a character": ("jsonl", GOOD + '{"text": "a", "label": "\\ud800"}', {}, "lone surrogate"),
    "one label": ("jsonl", GOOD.replace('"y"', '"x"'), {}, "at least two classes.* have 1"),
    "no test": ("jsonl", GOOD, {}, "no test split.*test_fraction=0.2"),
    "no such column": ("jsonl", GOOD, {"text_column": "body"}, "no key 'body'; the keys are text"),
    "one of each, and half to validate": (
        "jsonl",
        "".join(json.dumps({"text": f"t{i}", "label": f"l{i}"}) + "\n" for i in range(4)),
        {"test_fraction": 0.25, "validation_fraction": 0.4},
        "classes have no training example",
    ),
    "a small vocabulary": ("jsonl", GOOD, {"vocab_size": 260}, "vocab_size=260.*at least 261"),
    "a vocabulary that it cannot fill": (
        "jsonl", GOOD, {"vocab_size": 5000, "test_fraction": 0.5}, "vocabulary of only .* not 5000",
    ),
    "a spreadsheet": ("xlsx", b"PK\x03\x04", {}, r"no train\.csv, \.tsv, \.jsonl or \.txt in"),
}  # fmt: skip


@pytest.mark.parametrize("bad", TEXTS)
def test_texts(tmp_path, bad):
    suffix, text, changes, why = TEXTS[bad]
    text_helpers.write(tmp_path / f"train.{suffix}", text)
    refused(why, DATASETS["text_file"].load, text_helpers.settings(tmp_path, **changes))


SPLITS = {
    "a label in test only": ({"test.jsonl": '{"text": "a", "label": "z"}'}, "1 of 1 test texts"),
    "one in test and one in dev": (
        dict.fromkeys(("test.jsonl", "dev.jsonl"), '{"text": "a", "label": "z"}'),
        "1 of 1 test texts.*; 1 of 1 validation texts",
    ),
    "two files for one split": ({"train.csv": "text,label\na,x\n"}, "both .* are there: keep one"),
    "a test without labels": ({"test.txt": "a\n"}, "plain lines have no labels"),
    "nothing unlabelled": ({"test.jsonl": GOOD, "unlabelled.txt": ""}, "unlabelled.txt: no text"),
    "a damaged test and a damaged dev": (
        {"test.jsonl": "{", "dev.jsonl": GOOD + "{"}, r"test\.jsonl, line 1: .*dev\.jsonl, line 3",
    ),
    "unlabelled in other letters": ({"unlabeled.txt": "a"}, r"make it unlabelled\.txt, or"),
    "valid": ({"valid.csv": ""}, r"valid\.csv looks like .*: make it dev\.csv, or"),
    "test in other letters": ({"Test.csv": ""}, r"make it test\.csv, or"),
    "a damaged dev": ({"test.jsonl": GOOD, "dev.jsonl": GOOD + "{"}, r"dev\.jsonl, line 3"),
}  # fmt: skip


@pytest.mark.parametrize("bad", SPLITS)
def test_splits_of_texts(tmp_path, bad):
    files, why = SPLITS[bad]
    for name, text in {"train.jsonl": GOOD, **files}.items():
        text_helpers.write(tmp_path / name, text)
    refused(why, DATASETS["text_file"].load, text_helpers.settings(tmp_path))


def test_a_folder_that_is_called_like_a_file(tmp_path):
    (tmp_path / "train.csv").mkdir()
    wanted = text_helpers.settings(tmp_path)
    refused(r"cannot read .*train\.csv: Is a directory", DATASETS["text_file"].load, wanted)


# --- archives


def tar(*members, mode="w:gz") -> bytes:
    """Of (name, content or target of a link, attributes of the member)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for name, content, attributes in members:
            member = tarfile.TarInfo(name)
            member.size = len(content) if isinstance(content, bytes) else 0
            member.linkname = "" if isinstance(content, bytes) else content
            for key, value in attributes.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return file.getvalue()


def header(kind, size) -> bytes:
    """A tar that claims a name, or other facts, of so many bytes."""
    member = tarfile.TarInfo("a")
    member.type, member.size = kind, size
    return gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


def zipped(*names, method=zipfile.ZIP_DEFLATED) -> bytearray:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in names:
            archive.writestr(name, bytes(range(256)) * 20)
    return bytearray(file.getvalue())


def spoilt(data, change) -> bytes:
    """Changed by (data, place of its directory)."""
    change(data, data.index(b"PK\x01\x02"))
    return bytes(data)


def claim(size):
    return lambda data, place: struct.pack_into("<I", data, place + 24, size)


def flip(data, place):
    data[60] ^= 255


def encrypt(data, place):
    data[6] |= 1
    data[place + 8] |= 1


def method(number):
    def change(data, place):
        data[8] = data[place + 10] = number

    return change


A = ("a", b"a", {})
LINK, HARD = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}
ARCHIVES = {
    "nothing in it": ("a.tgz", lambda: tar(), "there is nothing in it"),
    "a link to nothing": ("a.tgz", lambda: tar(A, ("b", "gone", HARD)), "'gone' not found"),
    "a time that no clock has": (
        "a.tgz", lambda: tar(("a", b"a", {"mtime": 1e300})), "timestamp out of range",
    ),
    "a time that is no number": (
        "a.tgz", lambda: tar(("a", b"a", {"pax_headers": {"mtime": "nan"}})), "NaN",
    ),
    "a file in a file": ("a.tgz", lambda: tar(A, ("a/b", b"", {})), "Not a directory"),
    "a file in place of a folder": ("a.tgz", lambda: tar(("a/b", b"", {}), A), "Is a directory"),
    "a link to itself": ("a.tgz", lambda: tar(("a", "a", LINK), ("a/b", b"", {})), "File exists"),
    "a name of 3,000 letters": ("a.tgz", lambda: tar(("a" * 3000, b"", {})), "name too long"),
    "a name of 4 GB": ("a.tgz", lambda: header(tarfile.GNUTYPE_LONGNAME, 2**32), "header of 4294"),
    "facts of 4 GB": ("a.tgz", lambda: header(tarfile.XHDTYPE, 2**32), "a header of 4294967296"),
    "a picture of 4 GB": ("a.tgz", lambda: header(tarfile.REGTYPE, 2**32), "more than 20 times"),
    "a device": ("a.tgz", lambda: tar(("a", b"", {"type": tarfile.BLKTYPE})), "leads out"),
    "no tar in the gzip": ("a.tgz", lambda: gzip.compress(b"words " * 999), "cannot be extracted"),
    "a zip by another name": ("a.tgz", lambda: bytes(zipped("a")), "cannot be extracted"),
    "a bzip2": ("a.tar", lambda: tar(A, mode="w:bz2"), "cannot be extracted"),
    "half a gzip": ("a.tgz", lambda: tar(("a", bytes(NOISE), {}))[:-2000], "ended before"),
    "a tar by another name": ("a.zip", lambda: tar(A), "not a zip file"),
    "a claim of 4 GB": ("a.zip", lambda: spoilt(zipped("a"), claim(2**32 - 2)), "more than 20"),
    "encrypted": ("a.zip", lambda: spoilt(zipped("a"), encrypt), "encrypted"),
    "an unknown method": ("a.zip", lambda: spoilt(zipped("a"), method(99)), "not supported"),
    "a file within a file": ("a.zip", lambda: bytes(zipped("a", "a/b")), "Not a directory"),
    "a flipped byte": ("a.zip", lambda: spoilt(zipped("a"), flip), "cannot be extracted"),
    "a flipped byte, LZMA": (
        "a.zip", lambda: spoilt(zipped("a", method=zipfile.ZIP_LZMA), flip), "Corrupt input data",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", ARCHIVES)
def test_archives(tmp_path, bad):
    """That the user downloaded and put into the folder."""
    name, make, why = ARCHIVES[bad]
    data = make()
    (tmp_path / name).write_bytes(data)
    told = refused(why, fetch, [Download("http://x/y", len(data), "", name)], tmp_path)
    assert str(tmp_path / name) in told
    left = [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert sorted(left) == sorted(["lock", name])
    assert (tmp_path / name).read_bytes() == data


@pytest.mark.parametrize("record", [b"", b"[]", b'{"entries": 3}', b"[" * 10**5, b"\xff", b"null"])
@pytest.mark.parametrize("kind", [".done", ".moving"])
def test_a_damaged_record_of_a_download(tmp_path, record, kind):
    """It is as if the download had not come so far."""
    data = tar(A)
    (tmp_path / "a.tgz").write_bytes(data)
    (tmp_path / ".fetch").mkdir()
    (tmp_path / f".fetch/a.tgz{kind}").write_bytes(record)
    fetch([Download("http://x/y", len(data), "", "a.tgz")], tmp_path)
    assert (tmp_path / "a").read_bytes() == b"a"


# --- pickles


def with_labels(labels):
    return pickle.dumps({**content(3, 2), "fine_labels": labels}, 4)


BUILD = b"\x80\x02c_codecs\nencode\n%sb."  # "encode" is one of our own functions there
PICKLES = {
    "a label of 5,000 digits": (lambda: with_labels([1, 2, 10**5000]), "the label a int too large"),
    "a label that is a number's name": (lambda: with_labels([1, 2, "3"]), "n fine_labels"),
    "defaults for our function": (
        lambda: BUILD % b"N}U\x0c__defaults__U\x06latin1\x85s\x86", "to change a function",
    ),
    "attributes for our function": (lambda: BUILD % b"}U\x01aK\x01s", "to change a function"),
    "attributes for our class": (
        lambda: b"\x80\x02cnumpy\ndtype\n}U\x04nameU\x02u1sb.", "to change a type",
    ),
    "an instance, the old way": (lambda: b"(S'touch x'\nios\nsystem\n.", "it asks for os.system"),
    "an object, the old way": (lambda: b"(cos\nsystem\nS'touch x'\no.", "it asks for os.system"),
    "an object of the new way": (lambda: b"\x80\x02cos\nsystem\n)\x81.", "it asks for os.system"),
    "with keywords": (
        lambda: b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.", "it asks for os.system",
    ),
    "a call of a call": (lambda: pickle.dumps(Asks(map, print, [1])), "it asks for builtins.map"),
    "a buffer from outside": (lambda: b"\x80\x05\x97.", "cut short"),
    "10^18 bytes": (lambda: b"\x80\x04\x8e" + struct.pack("<Q", 10**18) + b"a.", "cut short"),
    "a frame of 10^18 bytes": (lambda: b"\x80\x04\x95" + struct.pack("<Q", 10**18) + b"N.", "cut"),
    "a list as a key": (lambda: b"}]Ns.", "unhashable"),
    "no end": (lambda: b"N" * 1000, "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("bad", PICKLES)
def test_pickles(tmp_path, bad):
    make, why = PICKLES[bad]
    root = write_cifar(tmp_path)
    (root / "test").write_bytes(make())
    before = (
        cifar100._encode.__defaults__,
        dict(vars(cifar100._encode)),
        dict(vars(cifar100._Dtype)),
    )
    refused(rf"^{root}/test: .*{why}", cifar100.load, settings(root))
    after = cifar100._encode.__defaults__, dict(vars(cifar100._encode)), dict(vars(cifar100._Dtype))
    assert after == before


def test_a_pickle_of_gigabytes(tmp_path, monkeypatch):
    root = write_cifar(tmp_path)
    monkeypatch.setattr(cifar100, "MAX_BYTES", 1000)
    refused(r"meta: not a file of CIFAR-100: it has \d+ bytes", cifar100.load, settings(root))


@pytest.mark.parametrize("record", [b"", b"no image", encoded("PNG")[:500], encoded("ICO")])
def test_a_broken_record_of_tfds(monkeypatch, record):
    example = tfds.Example({"id": "train_0", "label": 0}, cache.Record(lambda: record, "stamp"))
    monkeypatch.setattr(tfds, "read", lambda *_: tfds.Prepared([example], "TFDS x", ("a", "b")))
    wanted = settings(name="cifar100", source="tfds")
    refused("^TFDS x: train record 0 is broken .*prepare it again", cifar100.load, wanted)
