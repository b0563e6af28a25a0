"""What the tests of the text data sets share: settings, and small files on disk."""

import dataclasses
import json

import tokenizers

from sdfp.data.interface import Dataset, Split
from sdfp.settings import TextData

BYTES_ONLY = 261
"""The vocabulary without a merge: a token per byte, and two for the ends."""
DEFAULTS = TextData(
    name="text_file",
    dir="",
    source="files",
    test_fraction=0.0,
    validation_fraction=0.0,
    train_labels=0,
    split_seed=0,
    tokenizer="",
    tokenizer_revision="",
    vocab_size=BYTES_ONLY,
    max_length=64,
    text_column="text",
    label_column="label",
)


def settings(folder="", **changes) -> TextData:
    return dataclasses.replace(DEFAULTS, dir=str(folder), **changes)


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def write_jsonl(file, rows, **more):
    """`rows`: (text, label) each; `more`: further keys."""
    objects = [{"text": text, "label": label, **more} for text, label in rows]
    return write(file, "".join(json.dumps(each) + "\n" for each in objects))


def backend(data: Dataset) -> tokenizers.Tokenizer:
    """The tokenizer, from what a stage would keep of it."""
    return tokenizers.Tokenizer.from_str(json.dumps(data.input["tokenizer"]))


def rows(data: Dataset, split: Split) -> list[tuple[str, str, str]]:
    """(id, the text that the model sees, class name)"""
    decode, read = backend(data).decode, []
    for number, name in enumerate(split.ids):
        ids = split.arrays["tokens"][number, : split.arrays["length"][number]]
        label = data.class_names[split.arrays["label"][number]] if split.labelled else ""
        read.append((name, decode(ids.tolist()), label))
    return read
