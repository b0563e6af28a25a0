"""Data sets that TensorFlow Datasets prepared as array_record, read without tensorflow."""

import os
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

from sdfp.data import cache, layout
from sdfp.types import UserError


class Example(NamedTuple):
    """One record: its features other than images, and its image for later."""

    features: dict[str, Any]
    image: cache.Record


class Prepared(NamedTuple):
    """One split."""

    examples: list[Example]
    source: str
    """Name, version and folder, for results.json."""
    class_names: tuple[str, ...]
    """TFDS's own; of some data sets they are numbers only."""


def read(name: str, split: str, data_dir: str, *also_encoded: str) -> Prepared:
    """Lists a split of a prepared data set.

    Args:
        name: of the builder, e.g. "stanford_dogs".
        split: "train", "train+validation", ...
        data_dir: the TFDS data folder, "" for TFDS's own default.
        also_encoded: further image features, not to be decoded.

    Raises:
        UserError: not prepared, or TFDS is not installed.
    """
    records = _open(name, split, data_dir, ("image", *also_encoded))
    home = f"{records.dataset_info.data_dir} {split}"
    examples = []
    for number in range(len(records)):
        features = dict(records[number])
        size = len(features["image"])
        for encoded in ("image", *also_encoded):  # a whole data set of them would fill memory
            del features[encoded]
        fetch = lambda records=records, number=number: records[number]["image"]
        stamp = f"{home} {number} {size}"
        examples.append(Example(features, cache.Record(fetch, stamp)))
    info = records.dataset_info
    names = tuple(info.features["label"].names)
    return Prepared(examples, f"TFDS {info.full_name} in {info.data_dir}", names)


def rows(
    name: str,
    parts: Mapping[str, bool],
    data_dir: str,
    id_and_class: Callable[[Mapping[str, Any]], tuple[str, Hashable]],
    *also_encoded: str,
) -> tuple[list[layout.Row], str]:
    """The rows of several splits, for `layout.listing`, and the source.

    Args:
        parts: split -> whether it is training data.
        id_and_class: of a record, from its features.
    """
    found, source = [], ""
    for part, train in parts.items():
        examples, source, _ = read(name, part, data_dir, *also_encoded)
        found += [layout.Row(*id_and_class(e.features), train, e.image) for e in examples]
    return found, source


def _open(name: str, split: str, data_dir: str, encoded: tuple[str, ...]) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            "--config.data.source=tfds needs: pip install tensorflow-datasets array_record"
        ) from error
    where = os.path.expanduser(data_dir) or None
    skip = tfds.decode.SkipDecoding()  # decoded with all other images, see cache.py
    try:
        return tfds.data_source(
            name,
            split=split,
            data_dir=where,
            download=False,
            decoders=dict.fromkeys(encoded, skip),
        )
    # What TFDS raises where nothing is prepared is a NotImplementedError about TFRecord files.
    except (NotImplementedError, AssertionError, OSError, ValueError) as error:
        raise UserError(
            f"TFDS has no {name} as array_record in {where or '~/tensorflow_datasets'}: prepare "
            "it once, on a machine with network, tensorflow and opencv-python, with `tfds build "
            f"{name} --file_format=array_record --data_dir=<dir>`, then set "
            "--config.data.dir=<dir>; reading it needs none of the three"
        ) from error
