"""What a data set is to the rest of the program."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """The examples of one split, decoded, in a fixed order."""

    arrays: dict[str, np.ndarray]
    """Leading axis: examples. Images: `image` uint8 [n, height, width, channels] (may be
    memory-mapped) and, where there are labels, `label` int32 [n], contiguous from 0."""
    ids: tuple[str, ...]
    """One name per example, for predictions.csv: the relative path, or a number."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> bool:
        return "label" in self.arrays


class Dataset(NamedTuple):
    """One data set, cut into the splits that a run needs."""

    train: Split
    """What fine-tuning learns from (after the validation part and the label budget are cut)."""
    unlabelled: Split
    """D_u of Algorithm 1: `train` itself, unless the data set brings more images."""
    validation: Split | None
    test: Split | None
    class_names: tuple[str, ...]
    """Empty where there are no labels."""
    fingerprint: str
    """Hash of what the training stages see: ids, pixels, labels, image size."""
    notes: dict
    """Facts for results.json: counts, broken files by name, the source that was read."""
    prepare: Callable
    """(batch, key, augment) -> batch. Runs inside the compiled step, once for all passes of
    the step: uint8 -> normalised float32 `image`; `augment` adds the random horizontal flip,
    drawn per (key, example index)."""
    to_pixels: Callable
    """float images in the model's input space -> uint8 [..., height, width, channels]."""
