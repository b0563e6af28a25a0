"""What a data set is to the rest of the program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sdfp.settings import Data, Examples


class Split(NamedTuple):
    """The examples of one split, decoded, in a fixed order."""

    arrays: dict[str, np.ndarray]
    """Leading axis: examples. Images: `image` uint8 [n, height, width, channels] (may be
    memory-mapped). Texts: `tokens` int32 [n, longest], <s> to </s> and then <pad>, and `length`
    int32 [n]. Where there are labels, `label` int32 [n], contiguous from 0."""
    ids: tuple[str, ...]
    """One name per example, for predictions.csv: the relative path, or file and number."""

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
    """D_u of Algorithm 1: `train` itself, unless the data set brings more examples."""
    validation: Split | None
    test: Split | None
    class_names: tuple[str, ...]
    """Empty where there are no labels."""
    fingerprint: str
    """Hash of what the training stages see: ids, pixels or tokens, labels, image size."""
    notes: dict
    """Facts for results.json: counts, broken files by name, the source that was read."""
    remarks: tuple[str, ...]
    """What its user should be told, a line each: test examples that are in train, texts cut, ..."""
    metric: str
    """The headline one: accuracy, micro_f1 or macro_f1."""
    prepare: Callable
    """(batch, key, augment) -> batch. Runs inside the compiled step, once for all passes of
    the step. Images: uint8 -> normalised float32 `image` of the model's size; `augment` adds the
    random horizontal flip, drawn per (key, example index). Texts stay as they are."""
    input: dict[str, Any]
    """How the model's input is made outside of a run. Images: kind "image", `image_size`,
    `channels`, `mean`, `std`. Texts: kind "text", `max_length` (tokens, <s> and </s> counted),
    `vocab_size`, `special` (ids of bos, pad, eos, unk, mask), `tokenizer` (the content of a
    tokenizer.json)."""
    to_pixels: Callable | None = None
    """Images: float images in the model's input space -> uint8 [..., height, width, channels]."""
    to_text: Callable | None = None
    """Texts: what `Backbone.picture` gives, ids [rows, 3, length] -> a text to read."""

    @property
    def facts(self) -> dict[str, Any]:
        """For results.json."""
        return {"fingerprint": self.fingerprint, "remarks": self.remarks, **self.notes}


class Download(NamedTuple):
    """One file of a data set on a public server, for `python -m sdfp.data.fetch`."""

    url: str
    size: int
    """Bytes."""
    digest: str
    """"sha256:<hex>" or "md5:<hex>"; "" where none is published (a zip checks itself)."""
    name: str
    """File name. *.tar, *.tar.gz, *.tgz and *.zip are extracted, others are kept as they are."""
    into: str = ""
    """Subfolder of the target folder that it goes to."""


class Entry(NamedTuple):
    """A line of the registry."""

    load: Callable
    """(settings) -> Dataset"""
    downloads: tuple[Download, ...] = ()
    """The original files; empty where the set is not downloaded."""
    tfds: bool = False
    """Whether `config.data.source=tfds` is understood."""
    settings: type[Examples] = Data
    """What `load` takes: TextData where the set is of texts."""
    reads: Callable | None = None
    """(dir, path) -> whether new files in `path` become data, where they may."""
