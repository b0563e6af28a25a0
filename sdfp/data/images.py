"""From a list of image files, or from arrays, to a `Dataset`: what all image data sets share."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdfp.data import cache, pixels, splits
from sdfp.data.interface import Dataset, Split
from sdfp.settings import Data
from sdfp.types import UserError


class Example(NamedTuple):
    """One image that a data set lists."""

    path: Path | cache.Record
    label: int | None
    id: str


class Listing(NamedTuple):
    """What a data set made of image files consists of, before anything is decoded."""

    train: list[Example]
    class_names: tuple[str, ...]
    """Empty where `train` has no labels."""
    source: str
    """What was read, for results.json."""
    test: list[Example] | None = None
    validation: list[Example] | None = None
    unlabelled: list[Example] | None = None
    """Images for the pre-training stages; None: those of `train`."""
    published: tuple[int, int] | None = None
    """How many training and test images the whole data set has, where that is known."""


def assemble(listing: Listing, settings: Data) -> Dataset:
    """Decodes what `listing` names and cuts it (see `assemble_arrays`).

    Raises:
      UserError: more than `settings.max_broken` images are broken, or one of
        `assemble_arrays`' reasons.
    """
    parts = {
        "train": listing.train,
        "unlabelled": listing.unlabelled,
        "validation": listing.validation,
        "test": listing.test,
    }
    examples = [example for part in parts.values() for example in part or ()]
    decoded = cache.decode_all(
        [example.path for example in examples],
        settings.image_size,
        settings.channels,
        settings.cache_dir,
    )
    broken = {examples[row].id: why for row, why in decoded.broken.items()}
    _refuse_broken(broken, len(examples), settings.max_broken)
    cut, start = {}, 0
    for name, part in parts.items():
        if part is None:
            continue
        low, high = np.searchsorted(decoded.kept, [start, start + len(part)])
        kept = [examples[row] for row in decoded.kept[low:high]]
        cut[name] = _split(decoded.images[low:high], kept)
        start += len(part)
    notes = {"source": listing.source, "broken": broken, "cache": decoded.file}
    return assemble_arrays(
        settings=settings,
        class_names=listing.class_names,
        notes=notes,
        published=listing.published,
        **cut,
    )


def assemble_arrays(
    train: Split,
    *,
    settings: Data,
    class_names: tuple[str, ...],
    test: Split | None = None,
    validation: Split | None = None,
    unlabelled: Split | None = None,
    notes: dict,
    published: tuple[int, int] | None = None,
) -> Dataset:
    """Cuts test, validation and label budget from `train`, as far as they are not given.

    `settings.test_fraction` counts only where `test` is None, `validation_fraction` only where
    `validation` is None; the budget `train_labels` is taken from what is left, stratified like all
    cuts. Without labels nothing is cut. Where the data set has no unlabelled images of its own,
    the budget cuts `unlabelled` with `train` (they are one object); else they stay as they are.

    Args:
      train, test, validation, unlabelled: `image` uint8 [n, side, side, channels]; a side other
        than `settings.image_size` is resized to that within the compiled step.
      settings: `mean` and `std` have one value per channel, for pixels scaled to 0..1.
      class_names: by label; empty where `train` has no labels.
      notes: goes to results.json, with the counts added.
      published: training and test images of the whole data set, where that is known.

    Raises:
      UserError: no image left, fewer than two classes, a class without training examples, a label
        out of range, a budget that cannot be met, no test split, or a fraction for one it has.
    """
    found, given = (len(train), len(test) if test else 0), {"test": test, "validation": validation}
    if not len(train):
        raise UserError(f"no image to train on in {notes['source']}")
    if train.labelled:
        train, test, validation = _cut(train, test, validation, settings, len(class_names))
        _check_labels({"train": train, "validation": validation, "test": test}, class_names)
    unlabelled = train if unlabelled is None else unlabelled
    if not len(unlabelled):
        raise UserError(f"no unlabelled image in {notes['source']}")
    held_out = {"validation": validation, "test": test}
    parts: dict[str, Any] = {"train": train, "unlabelled": unlabelled, **held_out}
    facts = {
        "counts": {name: len(split) if split else 0 for name, split in parts.items()},
        "classes": len(class_names),
        "own_splits": [name for name, split in given.items() if split],
        "found": found,
        "published": published or found,
        "held_out": {n: _fingerprint([s], settings) for n, s in held_out.items() if s},
        "test_images_in_train": _shared_images(train, test),
    }
    seen = (train,) if unlabelled is train else (train, unlabelled)
    return Dataset(
        **parts,
        class_names=class_names,
        fingerprint=_fingerprint(seen, settings),
        notes={**notes, **facts},
        prepare=pixels.make_prepare(settings.mean, settings.std, settings.image_size),
        to_pixels=pixels.make_to_pixels(settings.mean, settings.std),
        input=_describe_input(settings),
    )


def _describe_input(settings: Data) -> dict[str, Any]:
    return {
        "kind": "image",
        "image_size": settings.image_size,
        "channels": settings.channels,
        "mean": list(settings.mean),
        "std": list(settings.std),
    }


def _split(images: np.ndarray, examples: list[Example]) -> Split:
    arrays = {"image": images}
    if all(example.label is not None for example in examples):
        arrays["label"] = np.array([example.label for example in examples], np.int32)
    return Split(arrays, tuple(example.id for example in examples))


def _cut(
    train: Split, test: Split | None, validation: Split | None, settings: Data, classes: int
) -> tuple[Split, Split, Split | None]:
    seed = settings.split_seed
    for name, split in (("test", test), ("validation", validation)):
        if split is not None and getattr(settings, f"{name}_fraction"):
            raise UserError(
                f"--config.data.{name}_fraction: the data set has its own {name} split; leave it 0"
            )
    if classes < 2:
        raise UserError(f"a classifier needs at least two classes, the data set has {classes}")
    if test is None:
        if not settings.test_fraction:
            raise UserError(
                "the data set has no test split (of your own images: a test folder or test.csv); "
                "hold out a part of train with --config.data.test_fraction=0.2"
            )
        keep = _left(len(train), settings.test_fraction, "test_fraction")
        train, test = splits.cut(train, keep, seed, splits.TEST)
    if validation is None and settings.validation_fraction:
        keep = _left(len(train), settings.validation_fraction, "validation_fraction")
        train, validation = splits.cut(train, keep, seed, splits.VALIDATION)
    budget = settings.train_labels
    if budget:
        if not classes <= budget <= len(train):
            raise UserError(
                f"--config.data.train_labels={budget} must be at least the {classes} classes and "
                f"at most the {len(train)} training examples (0 = all)"
            )
        train, _ = splits.cut(train, budget, seed, splits.BUDGET)
    return train, test, validation


def _left(examples: int, fraction: float, name: str) -> int:
    keep = examples - round(examples * fraction)
    if not 0 < keep < examples:
        raise UserError(
            f"--config.data.{name}={fraction} of {examples} examples leaves one part empty"
        )
    return keep


def _check_labels(parts: dict[str, Split | None], class_names: tuple[str, ...]) -> None:
    # On the device a wrong label is no error: -1 would count as the last class.
    for name, split in parts.items():
        if split is None:
            continue
        if not len(split):
            raise UserError(f"the {name} split is empty")
        labels = split.arrays["label"]
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise UserError(f"a {name} label is outside 0..{len(class_names) - 1}")
        absent = sorted(set(range(len(class_names))) - set(labels.tolist()))
        if name == "train" and absent:
            names = ", ".join(class_names[label] for label in absent[:5])
            raise UserError(f"{len(absent)} classes have no training example: {names}")


def _shared_images(train: Split, test: Split | None) -> int:
    """How many test images are in train, pixel for pixel."""
    if test is None:
        return 0
    seen = {hashlib.sha256(image.tobytes()).digest() for image in train.arrays["image"]}
    return sum(hashlib.sha256(i.tobytes()).digest() in seen for i in test.arrays["image"])


def _refuse_broken(broken: dict[str, str], examples: int, max_broken: int) -> None:
    if len(broken) <= max_broken:
        return
    first = "; ".join(f"{name} ({why})" for name, why in list(broken.items())[:3])
    raise UserError(
        f"{len(broken)} of {examples} images are broken, more than "
        f"--config.data.max_broken={max_broken}: {first}{'; ...' if len(broken) > 3 else ''}; "
        "replace or remove them, or raise that number to leave them out"
    )


def _fingerprint(parts: Sequence[Split], settings: Data) -> str:
    """Hash of what a program sees: ids, pixels, labels, their order and normalisation."""
    digest = hashlib.sha256(
        repr((settings.image_size, settings.channels, settings.mean, settings.std)).encode()
    )
    for split in parts:
        digest.update(repr(split.ids).encode("utf-8", "surrogateescape"))
        for name in sorted(split.arrays):
            array = split.arrays[name]
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            for start in range(0, len(array), 256):
                digest.update(array[start : start + 256].tobytes())
    return digest.hexdigest()
