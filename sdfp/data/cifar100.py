"""CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images of 100 classes, 32 x 32.

For the low-resource study, `train_labels` cuts 1,000, 2,500, 5,000, ... of them: stratified, each
cut within the next, the same from the files and from TFDS's `cifar100`. Images keep their 32 x 32
pixels in memory and are enlarged within the compiled step (49 times less memory at 224).
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdfp import checked
from sdfp.data import cache, images, layout, tfds
from sdfp.data.interface import Dataset, Download, Split
from sdfp.settings import Data
from sdfp.types import UserError, one_line

PUBLISHED = (50_000, 10_000)
CLASSES = 100
MAX_BYTES = 2**29
"""Of a file; the largest has 155 MB."""
SHAPE = (32, 32, 3)
ABOUT = (
    "cifar-100-python holds train, test and meta; get it with `python -m sdfp.data.fetch cifar100 "
    "--dir DIR` or from https://www.cs.toronto.edu/~kriz/cifar.html (python version)"
)
DOWNLOADS = (
    Download(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        169_001_437,
        "md5:eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python.tar.gz",
    ),
)


def load(settings: Data) -> Dataset:
    """The data set in `settings.dir`: the folder cifar-100-python or the one that holds it; with
    source "tfds" the TFDS data folder ("" = TFDS's own default).

    Raises:
      UserError: nothing there, a file that does not parse, a label outside 0..99, or a reason of
        `images.assemble_arrays`.
    """
    read = _from_tfds if settings.source == "tfds" else _from_files
    train, test, class_names, source = read(settings.dir)
    return images.assemble_arrays(
        _grey(train) if settings.channels == 1 else train,
        test=_grey(test) if settings.channels == 1 else test,
        settings=settings,
        class_names=class_names,
        notes={"source": source, "broken": {}},
        published=PUBLISHED,
    )


def _from_files(folder: str) -> tuple[Split, Split, tuple[str, ...], str]:
    root = layout.find(folder, "cifar-100-python", "meta", ABOUT)
    names = _list(str, read_pickle(root / "meta").get("fine_label_names"))
    if len(names) != CLASSES:
        raise UserError(f"{root}/meta: no list of {CLASSES} fine_label_names")
    train, test = (parse(root / name, name) for name in ("train", "test"))
    return train, test, tuple(names), f"CIFAR-100 files in {root}"


def parse(file: Path, name: str) -> Split:
    """One file of the original layout; the ids are TFDS's: "train_00000" is its first image.

    Raises:
      UserError: unreadable, other shapes, or a label outside 0..99.
    """
    content = read_pickle(file)
    data, labels = content.get("data"), _list(int, content.get("fine_labels"))
    if (
        not isinstance(data, np.ndarray)
        or data.shape[1:] != (int(np.prod(SHAPE)),)
        or len(labels) != len(data)
    ):
        raise UserError(f"{file}: expected uint8 data [n, 3072] and n fine_labels")
    wrong = [(i, label) for i, label in enumerate(labels) if label not in range(CLASSES)]
    if wrong:
        raise UserError(
            f"{file}: image {wrong[0][0]} has the label {checked.shown(wrong[0][1])}, outside 0..99"
        )
    pixels = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # channel-major in the file
    return _split(np.ascontiguousarray(pixels), labels, name)


def _list(kind: type, values: Any) -> list:
    """`values`, or nothing where they are no list of this kind."""
    whole = isinstance(values, list) and all(isinstance(value, kind) for value in values)
    return values if whole else []


class _Dtype:
    """What numpy.dtype is in a pickle, here."""

    def __init__(self, name: str, *_: Any):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and the like; bytes have none


class _Array:
    """What an array is in a pickle, here: bytes and their shape.

    numpy's own arrays and dtypes believe a state that turns bytes into addresses of objects.
    """

    pixels = np.zeros(0, np.uint8)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or dtype.name != "u1" or fortran:
            raise pickle.UnpicklingError("it asks for an array of other things than bytes")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # str: from Python 2
        self.pixels = np.frombuffer(raw, np.uint8).reshape(shape)


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: str, *_: Any) -> _Array:
    """An array as pickle protocol 5 has it."""
    array = _Array()
    array.__setstate__((1, shape, dtype, order != "C", bytes(raw)))
    return array


def _encode(text: str, kind: str) -> bytes:
    """Bytes as Python 3 writes them with protocol 2."""
    if kind != "latin1":
        raise pickle.UnpicklingError(f"it asks for bytes of {kind}")
    return text.encode(kind)


class _DataOnly(pickle._Unpickler):
    """A pickle can run any code. This one makes nothing but lists, dicts and arrays of bytes.

    The pure Python class: a few bytes make the C one allocate gigabytes for its memo.
    """

    KNOWN = {
        ("numpy", "ndarray"): "ndarray",
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):
        KNOWN[f"{core}.multiarray", "_reconstruct"] = _Array
        KNOWN[f"{core}.numeric", "_frombuffer"] = _from_buffer

    def load_build(self) -> None:
        # On anything else it would set attributes, of our own functions too.
        found = self.stack[-2]  # pyright: ignore
        if not isinstance(found, _Array | _Dtype):
            raise pickle.UnpicklingError(f"it asks to change a {type(found).__name__}")
        super().load_build()  # pyright: ignore

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # pyright: ignore

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.KNOWN[module, name]


def read_pickle(file: Path) -> dict[str, Any]:
    """A pickled dict of lists, numbers, texts and arrays, and nothing that could run code.

    Raises:
        UserError: it cannot be read, is cut short, or holds anything else.
    """
    try:
        if (size := file.stat().st_size) > MAX_BYTES:
            raise UserError(f"{file}: not a file of CIFAR-100: it has {size} bytes")
        with file.open("rb") as opened:
            content = _DataOnly(opened, encoding="latin1").load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except Exception as error:  # damaged pickles end in many kinds of errors
        raise UserError(
            f"{file}: not a file of CIFAR-100, or cut short ({one_line(error) or 'no end'}); get "
            "it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a file of CIFAR-100: it holds no dict")
    return {k: v.pixels if isinstance(v, _Array) else v for k, v in content.items()}


def _from_tfds(data_dir: str) -> tuple[Split, Split, tuple[str, ...], str]:
    splits, source, names = [], "", ()
    for part in ("train", "test"):
        examples, source, names = tfds.read("cifar100", part, data_dir)
        examples = sorted(examples, key=lambda example: example.features["id"])
        decoded = cache.decode_all([e.image for e in examples], SHAPE[0], SHAPE[2], "")
        if decoded.broken:
            row, why = next(iter(decoded.broken.items()))
            raise UserError(f"{source}: {part} record {row} is broken ({why}); prepare it again")
        splits.append(_split(decoded.images, [e.features["label"] for e in examples], part))
    return splits[0], splits[1], names, source


def _split(pixels: np.ndarray, labels: list[int], name: str) -> Split:
    arrays = {"image": pixels, "label": np.array(labels, np.int32)}
    return Split(arrays, tuple(f"{name}_{number:05d}" for number in range(len(pixels))))


def _grey(split: Split) -> Split:
    """ITU-R 601 luma, as PIL computes it for the other data sets."""
    rows = [np.asarray(Image.fromarray(image).convert("L")) for image in split.arrays["image"]]
    return Split({**split.arrays, "image": np.stack(rows)[..., None]}, split.ids)
