"""What the readers of original data set layouts share: finding, parsing, numbering."""

import itertools
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdfp.data import cache, images
from sdfp.types import UserError, one_line, some


class Row(NamedTuple):
    """What the annotation files say about one image."""

    id: str
    """Unique; for predictions.csv."""
    key: Hashable
    """Of its class, as in the files."""
    train: bool
    """Or test."""
    where: Path | cache.Record


def find(folder: str, inside: str, marker: str, told: str) -> Path:
    """The root of a layout: `folder`/`inside`, or `folder` itself.

    Args:
        marker: a file or folder that only the root holds.
        told: for the user: the data set's name, what it holds, where it is from.

    Raises:
        UserError: neither holds the marker.
    """
    given = Path(os.path.expanduser(folder))
    if folder:
        for root in (given / inside, given):
            if (root / marker).exists():
                return root
    looked = f"no {marker} in {folder}/{inside} nor in {folder}" if folder else "no folder given"
    raise UserError(f"{looked}; set --config.data.dir. {told}")


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, stripped, with their numbers from 1.

    Raises:
        UserError: it cannot be read, holds a null character, or no line at all.
    """
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if not text.strip():
        raise UserError(f"{file}: is empty; get it again")
    for number, line in enumerate(text.splitlines(), 1):
        if "\0" in line:
            raise UserError(f"{file}, line {number}: holds a null character; is it a text file?")
        if line.strip():
            yield number, line.strip()


def matlab(file: Path, *names: str) -> tuple[np.ndarray, ...]:
    """Variables of a MATLAB file, each flattened to one dimension.

    Raises:
        UserError: it cannot be read, or a variable is missing.
    """
    from scipy import io

    try:
        data = file.read_bytes()  # the parser raises OSError too, for what is no MATLAB file
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    try:
        content = io.loadmat(BytesIO(data), variable_names=names)
    except Exception as error:  # the parser raises many kinds for one damaged file
        raise UserError(f"{file}: not a whole MATLAB 5 file ({one_line(error)})") from error
    if missing := [name for name in names if name not in content]:
        raise UserError(f"{file}: no variable {some(missing)}; is it another file of the set?")
    return tuple(np.asarray(content[name]).ravel() for name in names)


def listing(
    rows: Iterable[Row],
    names: Mapping[Any, str],
    *,
    source: str,
    published: tuple[int, int],
) -> images.Listing:
    """Numbers the classes and splits the rows, both in a fixed order.

    Rows are sorted by id, so that a data set reads the same from its files and from TFDS. Only
    the classes that occur are counted, so a part of a data set is a data set with fewer classes.

    Args:
        names: class key -> name, in the official order, which the labels follow.
        source: what was read, for results.json.
        published: how many training and test images the whole data set has.

    Raises:
        UserError: a class that `names` does not have, an image that stands there twice, or one
            outside of the folder.
    """
    rows = sorted(rows, key=lambda row: row.id)
    for row, following in itertools.pairwise(rows):
        if row.id == following.id:
            sides = {"train" if each.train else "test" for each in (row, following)}
            where = " and in ".join(sorted(sides, reverse=True))
            raise UserError(f"{source}: {row.id} is listed twice, in {where}: remove one line")
    if out := [row.id for row in rows if row.id.startswith("/") or ".." in row.id.split("/")]:
        raise UserError(f"{source}: {out[0]} leads out of the folder")
    if unknown := [row for row in rows if row.key not in names]:
        raise UserError(f"{source}: {unknown[0].id} has the unknown class {unknown[0].key!r}")
    present = {row.key for row in rows}
    occurring = [key for key in names if key in present]
    label = {key: position for position, key in enumerate(occurring)}
    parts: dict[bool, list[images.Example]] = {True: [], False: []}
    for row in rows:
        parts[row.train].append(images.Example(row.where, label[row.key], row.id))
    return images.Listing(
        train=parts[True],
        test=parts[False] or None,
        class_names=tuple(names[key] for key in occurring),
        source=source,
        published=published,
    )
