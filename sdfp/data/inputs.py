"""Examples of each kind that `Dataset.input` names: new ones read, and any shown; see `KINDS`."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sdfp import checked
from sdfp.data import cache, image_folder, pixels, tables, text_file, texts, tokenizer
from sdfp.data.interface import Split
from sdfp.data.text_files import Document
from sdfp.types import UserError


class Read(NamedTuple):
    """Examples as a model takes them."""

    split: Split
    """Those that can be read, in the order given; no labels."""
    remarks: Sequence[str]
    """What their user should be told, a line each."""


class Kind(NamedTuple):
    """How examples of one kind are found and read."""

    unit: str
    """What one is called."""
    id: str
    """What their names are, as the head of a column."""
    find: Callable
    """(path that exists, column) -> a sequence with an entry per example; `column` is where a
    table has its texts. Raises UserError where the path holds none, or another kind."""
    read: Callable
    """(entries, Dataset.input) -> Read"""
    prepare: Callable
    """(Dataset.input) -> Dataset.prepare"""
    whole: bool
    """Whether all are read at once and not some at a time."""
    show: Callable
    """(Dataset.input, Split, positions) -> what a person sees of these examples: a PIL image each,
    as stored, or the text as far as the model reads it."""


def checked_input(input: Mapping[str, Any]) -> dict[str, Any]:
    """A `Dataset.input` that was read from a file, as far as its shape goes. Raises UserError."""
    checked.one_of("input.kind", input["kind"], SHAPES)
    if wrong := checked.misfit(input, SHAPES[input["kind"]], "input"):
        raise UserError(wrong)
    return dict(input)


SHAPES: dict[str, Any] = {
    "image": {
        **{"image_size": int, "channels": int},
        **{"mean": [checked.NUMBER], "std": [checked.NUMBER]},
    },
    "text": {"max_length": int, "vocab_size": int, "special": {str: int}, "tokenizer": dict},
}
"""By kind, see `checked.misfit`."""


# --- images


def list_images(path: Path) -> list[tuple[str, Path]]:
    """The images of a folder (all below it), a CSV file (column `path`) or an image file, with the
    names they get in the result.

    Raises:
        UserError: none there, a file of texts, or a CSV with a fault.
    """
    if path.is_dir():
        found = [(p.relative_to(path).as_posix(), p) for p in image_folder.images_in(path)]
        if not found:
            listed = " ".join(image_folder.SUFFIXES)
            raise UserError(f"--input {path}: no image in it ({listed})")
        return found
    if path.suffix.lower() == ".csv":
        try:
            rows = tables.values(path, ("path",))
        except UserError as error:
            raise UserError(f"--input, and the model takes images: {error}") from None
        return [(name, path.parent / name) for _, (name,) in rows]
    if path.suffix.lower() in text_file.SUFFIXES:
        raise UserError(
            f"--input {path}: a file of texts, and the model takes images: give a folder of them, "
            "an image, or a .csv file with the column path"
        )
    return [(path.name, path)]


def read_images(listed: Sequence[tuple[str, Path]], input: Mapping[str, Any]) -> Read:
    """Decodes images as in training; the remarks say which ones cannot be, and why."""
    paths = [path for _, path in listed]
    decoded = cache.decode_all(paths, input["image_size"], input["channels"], "", tolerant=True)
    names = tuple(listed[row][0] for row in decoded.kept)
    remarks = [f"left out {listed[row][0]}: {why}" for row, why in decoded.broken.items()]
    return Read(Split({"image": decoded.images}, names), remarks)


def show_images(input: Mapping[str, Any], split: Split, places: Sequence[int]) -> list[Image.Image]:
    """The stored pixels, before they are resized or normalised."""
    arrays = [np.asarray(split.arrays["image"][place]) for place in places]
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]


# --- texts


def list_texts(path: Path, column: str) -> list[Document]:
    """The texts of a .csv, .tsv, .jsonl or .txt file; labels and other columns are not looked at.

    Args:
        column: that holds the text, or the key of a .jsonl; a .txt is a text per line.

    Raises:
        UserError: a folder or another kind of file, or a reason of `text_files`.
    """
    if path.is_dir() or path.suffix.lower() not in text_file.SUFFIXES:
        what = "a folder" if path.is_dir() else "not a file of texts"
        raise UserError(
            f"--input {path}: {what}, and the model takes texts: give one "
            f"{', '.join(text_file.SUFFIXES[:-1])} or {text_file.SUFFIXES[-1]} file"
        )
    return text_file.read(path, column, None)


def read_texts(documents: Sequence[Document], input: Mapping[str, Any]) -> Read:
    """Tokenises texts as in training; the remarks say how many are too long.

    Raises:
        UserError: a tokenizer that is not of RoBERTa's kind.
    """
    encoded = texts.encode(documents, None, _tokenizer(input), input["max_length"])
    return Read(encoded.split, list(texts.remarks({"new": encoded}, input["max_length"])))


def show_texts(input: Mapping[str, Any], split: Split, places: Sequence[int]) -> list[str]:
    """What is left of the texts after the cut to `max_length`; special tokens that they spell out
    stay."""
    opened = _tokenizer(input)
    tokens, length = split.arrays["tokens"], split.arrays["length"]
    inside = [tokens[place, 1 : length[place] - 1].tolist() for place in places]
    return [opened.backend.decode(ids, skip_special_tokens=False) for ids in inside]


def _tokenizer(input: Mapping[str, Any]) -> tokenizer.Tokenizer:
    return tokenizer.from_json(json.dumps(input["tokenizer"]), "the model's tokenizer.json")


KINDS: dict[str, Kind] = {
    "image": Kind(
        unit="image",
        id="path",
        find=lambda path, column: list_images(path),
        read=read_images,
        prepare=lambda made: pixels.make_prepare(made["mean"], made["std"], made["image_size"]),
        whole=False,
        show=show_images,
    ),
    "text": Kind(
        unit="text",
        id="id",
        find=list_texts,
        read=read_texts,
        prepare=lambda made: texts.prepare,
        # Batches are packed into rows of one shape, which depends on all of them.
        whole=True,
        show=show_texts,
    ),
}
"""By `Dataset.input["kind"]`."""
