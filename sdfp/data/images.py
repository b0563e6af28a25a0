"""From a list of image files, or from arrays, to a `Dataset`: what all image data sets share."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdfp.data import assembly, cache, pixels
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
    """Cuts test, validation and label budget from `train`, as `assembly.assemble` says.

    Args:
      train, test, validation, unlabelled: `image` uint8 [n, side, side, channels]; a side other
        than `settings.image_size` is resized to that within the compiled step.
      settings: `mean` and `std` have one value per channel, for pixels scaled to 0..1.
      class_names: by label; empty where `train` has no labels.
      notes: goes to results.json, with the counts added.
      published: training and test images of the whole data set, where that is known.

    Raises:
      UserError: see `assembly.assemble`.
    """
    return assembly.assemble(
        assembly.Parts(train, test, validation, unlabelled),
        settings,
        kind="image",
        class_names=class_names,
        notes=notes,
        published=published,
        count_shared=_shared_images,
        header=repr((settings.image_size, settings.channels, settings.mean, settings.std)),
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


def _shared_images(train: Split, test: Split) -> int:
    """How many test images are in train, pixel for pixel."""
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
