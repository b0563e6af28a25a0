"""CIFAR-100: pickles that may be hostile, label budgets, and enlarging within the step."""

import itertools
import os
import pickle
import subprocess

import jax
import numpy as np
import pytest
from data_helpers import grey, settings
from PIL import Image
from tfds_helpers import assert_equal_data, write_tfds

from sdfp.data import cifar100
from sdfp.types import UserError

NAMES = [f"kind_{number:02d}" for number in range(99, -1, -1)]  # the order is the file's


def dump(file, content, protocol=4):
    file.write_bytes(pickle.dumps(content, protocol))


def content(count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)
    labels = [(7 * number + seed) % 100 for number in range(count)]
    return {"data": pixels, "fine_labels": labels, "coarse_labels": [0] * count, "filenames": []}


def write_cifar(folder):
    root = folder / "cifar-100-python"
    root.mkdir()
    dump(root / "train", content(300, 1))
    dump(root / "test", content(100, 2))
    dump(root / "meta", {"fine_label_names": NAMES, "coarse_label_names": []}, protocol=3)
    return root


@pytest.mark.parametrize("given", ["root", "parent"])
def test_original_layout(tmp_path, given):
    root = write_cifar(tmp_path)
    data = cifar100.load(settings(root if given == "root" else tmp_path, image_size=224))
    assert data.class_names == tuple(NAMES)
    assert data.train.ids[:2] == ("train_00000", "train_00001")
    assert data.test.ids[-1] == "test_00099"
    assert data.train.arrays["label"].tolist() == content(300, 1)["fine_labels"]
    image = data.test.arrays["image"][5]
    assert image.shape == (32, 32, 3)  # whatever the model's size
    assert image[3, 4].tolist() == content(100, 2)["data"][5, [100, 1124, 2148]].tolist()
    assert data.unlabelled is data.train
    assert (data.notes["found"], data.notes["published"]) == ((300, 100), (50_000, 10_000))
    assert data.notes["own_splits"] == ["test"]


def test_grey_is_that_of_pil(tmp_path):
    root = write_cifar(tmp_path)
    data, colour = cifar100.load(grey(folder=root, image_size=32)), cifar100.load(settings(root))
    assert data.train.arrays["image"].shape == (300, 32, 32, 1)
    for one, image in zip(data.test.arrays["image"], colour.test.arrays["image"], strict=True):
        np.testing.assert_array_equal(one[..., 0], Image.fromarray(image).convert("L"))


@pytest.mark.parametrize("budget", [0, 150])
def test_tfds_equals_files(tmp_path, monkeypatch, budget):
    root = write_cifar(tmp_path)
    splits = {}
    for part in ("train", "test"):
        images, labels = cifar100.parse(root / part, part).arrays.values()
        splits[part] = []
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = tmp_path / f"{part}{number}.png"  # TFDS stores PNGs
            Image.fromarray(image).save(file)
            name = f"{part}_{number:05d}"
            one = {"id": name, "image": file, "label": label, "coarse_label": label // 5}
            splits[part].append(one)
        splits[part].reverse()
    names = {"label": NAMES, "coarse_label": list("abcdefghijklmnopqrst")}
    write_tfds(monkeypatch, tmp_path / "tfds", "cifar100", splits, names)
    data = cifar100.load(settings(tmp_path / "tfds", source="tfds", train_labels=budget))
    assert_equal_data(data, cifar100.load(settings(root, train_labels=budget)))
    assert len(data.train) == (budget or 300)
    assert "TFDS cifar100/" in data.notes["source"]


# --- what is wrong is said


def refused(folder, match, **changes):
    with pytest.raises(UserError, match=match) as caught:
        cifar100.load(settings(folder, **changes))
    assert "\n" not in str(caught.value)


def test_not_found(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    refused("", r"^no .*config\.data\.dir.*data\.fetch cifar100 .*https://")
    refused(tmp_path, r"no meta in .*config\.data\.dir")
    refused(tmp_path, "tfds build cifar100 --file_format=array_record", source="tfds")


def changed(**changes):
    return pickle.dumps({**content(100, 2), **changes}, 4)


WHOLE = changed()
LABELS = content(100, 2)["fine_labels"]
SHAPES = r"test: expected uint8 data \[n, 3072\] and n fine_labels"
FAULTS = [
    ("meta", None, r"no meta in .*config\.data\.dir"),
    ("test", None, "cannot read .*test: No such file"),
    ("test", b"", "test: not a file of CIFAR-100, or cut short.*get it again"),
    ("test", WHOLE[:-400], "test: not a file of CIFAR-100, or cut short"),
    ("test", WHOLE[: len(WHOLE) // 2], "test: not a file of CIFAR-100, or cut short"),
    ("test", b"<html>404</html>", "test: not a file of CIFAR-100, or cut short"),
    ("test", pickle.dumps([1]), "test: not a file of CIFAR-100: it holds no dict"),
    ("test", pickle.dumps({}), SHAPES),
    ("test", changed(data=np.zeros((100, 3071), np.uint8)), SHAPES),
    ("test", changed(data=np.zeros((100, 32, 32, 3), np.uint8)), SHAPES),
    ("test", changed(data=np.zeros((), np.uint8)), SHAPES),
    ("test", changed(data=np.zeros((99, 3072), np.uint8)), SHAPES),
    ("test", changed(data="text"), SHAPES),
    ("test", changed(fine_labels=None), SHAPES),
    ("test", changed(data=np.zeros((100, 3072), np.float32)), "other things than bytes"),
    ("test", changed(fine_labels=[*LABELS[:50], 100, *LABELS[51:]]), "image 50 has the label 100,"),
    ("test", changed(fine_labels=[-1, *LABELS[1:]]), "image 0 has the label -1, outside 0..99"),
    ("test", changed(fine_labels=[[1], *LABELS[1:]]), "n fine_labels"),
    (
        "test",
        changed(data=np.zeros((0, 3072), np.uint8), fine_labels=[]),
        "the test split is empty",
    ),
    ("train", pickle.dumps(content(100, 0) | {"fine_labels": [0] * 100}), "99 classes have no tr"),
    ("meta", pickle.dumps({"fine_label_names": NAMES[:99]}), "meta: no list of 100 fine_label_n"),
    ("meta", pickle.dumps({"label_names": NAMES}), "meta: no list of 100 fine_label_names"),
]


@pytest.mark.parametrize(("file", "data", "match"), FAULTS)
def test_faults_name_the_file(tmp_path, file, data, match):
    root = write_cifar(tmp_path)
    (root / file).unlink() if data is None else (root / file).write_bytes(data)
    refused(root, match)


class Asks:
    """Is pickled as a call of `function`, and perhaps a state."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def array(dtype, raw, shape=(1,)):
    rebuild = np._core.multiarray._reconstruct
    return Asks(rebuild, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, raw))


# numpy takes flags = 0 at its word: the bytes would be used as the address of an object.
FORGED = Asks(
    np.dtype, "V8", False, True, state=(3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0)
)
HOSTILE = {
    "os.system": lambda mark: Asks(os.system, f"touch {mark}"),
    "eval": lambda mark: Asks(eval, f"__import__('os').mkdir({str(mark)!r})"),
    "exec": lambda mark: Asks(exec, f"import os; os.mkdir({str(mark)!r})"),
    "getattr": lambda mark: Asks(getattr, np.ndarray, "tofile"),
    "Popen": lambda mark: Asks(subprocess.Popen, ["touch", str(mark)]),
    "open": lambda mark: Asks(open, str(mark), "w"),
    "numpy.load": lambda mark: Asks(np.load, str(mark.with_name("other.npy")), None, True),
    "numpy.fromfile": lambda mark: Asks(np.fromfile, "/etc/hostname", np.uint8),
    "an array of objects": lambda mark: np.array([{}], object),
    "an array made of addresses": lambda mark: array(FORGED, b"A" * 8),
    "an array that is too large": lambda mark: array(np.dtype("u1"), b"A", shape=(10**9,)),
    "a call of ndarray": lambda mark: Asks(np.ndarray, (10**13,)),
    "a nested name": lambda mark: (
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93" + b"\x8c\x01x\x85R."
    ),
    "an extension": lambda mark: b"\x80\x02\x82\x01.",
    "a persistent id": lambda mark: b"Pmark\n.",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickles_are_refused_and_not_run(tmp_path, monkeypatch, name, protocol):
    root = write_cifar(tmp_path)
    mark = tmp_path / "ran"
    np.save(tmp_path / "other.npy", np.array([Asks(os.system, f"touch {mark}")]), True)
    hostile = HOSTILE[name](mark)
    whole = {**content(100, 2), "filenames": hostile}
    (root / "test").write_bytes(
        hostile if isinstance(hostile, bytes) else pickle.dumps(whole, protocol)
    )
    called = []
    monkeypatch.setattr(np, "load", lambda *a, **k: called.append(a))
    monkeypatch.setattr(np, "fromfile", lambda *a, **k: called.append(a))
    refused(root, "test: not a file of CIFAR-100, or cut short")
    assert not mark.exists()
    assert not called


def test_the_attacks_do_run_elsewhere(tmp_path):
    """Else the test above would show nothing."""
    for name in ("os.system", "eval", "exec"):
        mark = tmp_path / name
        pickle.loads(pickle.dumps(HOSTILE[name](mark)))
        assert mark.exists()


# --- budgets


@pytest.mark.real_data
def test_budgets_of_the_real_subset(real_data):
    folder = real_data / "images/cifar100_subset"
    chosen = []
    for budget, per_class in ((1000, 10), (2500, 25), (5000, 50)):
        data = cifar100.load(settings(folder, train_labels=budget))
        assert np.bincount(data.train.arrays["label"]).tolist() == [per_class] * 100
        assert data.unlabelled is data.train
        assert len(data.test) == 5000
        assert data.notes["found"] == (5000, 5000)
        assert list(data.train.ids) == sorted(data.train.ids)
        chosen.append(set(data.train.ids))
    assert all(small < large for small, large in itertools.pairwise(chosen))
    other = cifar100.load(settings(folder, train_labels=1000, split_seed=1))
    assert len(set(other.train.ids) & chosen[0]) < 400


@pytest.mark.real_data
def test_real_subset_against_another_reading(real_data):
    folder = real_data / "images/cifar100_subset/cifar-100-python"
    data = cifar100.load(settings(folder))
    meta = pickle.loads((folder / "meta").read_bytes(), encoding="bytes")
    assert list(data.class_names) == [name.decode() for name in meta[b"fine_label_names"]]
    for name, split in (("train", data.train), ("test", data.test)):
        whole = pickle.loads((folder / name).read_bytes(), encoding="bytes")
        assert split.arrays["label"].tolist() == whole[b"fine_labels"]
        assert np.bincount(split.arrays["label"]).tolist() == [50] * 100
        for channel in range(3):
            plane = whole[b"data"][:, 1024 * channel :][:, :1024].reshape(-1, 32, 32)
            np.testing.assert_array_equal(split.arrays["image"][..., channel], plane)


# --- enlarged within the compiled step


@pytest.mark.real_data
@pytest.mark.parametrize("side", [16, 32, 64, 224])
def test_prepare_resizes_as_pil_does(real_data, side):
    wanted = settings(real_data / "images/cifar100_subset", image_size=side)
    data = cifar100.load(wanted)
    rows = np.arange(0, 5000, 250)
    raw = data.train.arrays["image"][rows]
    batch = {"image": raw, "index": rows, "weight": np.ones(len(rows), np.float32)}
    out = jax.jit(data.prepare, static_argnums=2)(batch, jax.random.key(0), False)
    assert out["image"].shape == (len(rows), side, side, 3)
    resized = [Image.fromarray(image).resize((side, side), Image.BILINEAR) for image in raw]
    ours = data.to_pixels(out["image"]).astype(int)
    difference = np.abs(ours - np.stack([np.asarray(image) for image in resized]))
    assert difference.max() <= 1
    assert difference.mean() < 0.001


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_is_read(tmp_path, protocol):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072)).astype(np.uint8)
    dump(tmp_path / "train", {"data": pixels, "fine_labels": [2, 0, 1]}, protocol)
    found = cifar100.parse(tmp_path / "train", "train")
    read = found.arrays["image"].transpose(0, 3, 1, 2).reshape(3, -1)
    np.testing.assert_array_equal(read, pixels)
