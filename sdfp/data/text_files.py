"""Reads labelled texts from the files that text data sets come in.

A text is taken as it stands in the file, spaces included. Only "\\n" ends a line: tweets hold
U+2028, U+0085 and other characters at which `str.splitlines` would cut them in two.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdfp.data import tables
from sdfp.types import UserError, some


class Document(NamedTuple):
    """One text."""

    id: str
    """"<file stem>/<number from 0>", for predictions.csv."""
    text: str
    label: str | None
    """The name of its class; None where the file has no labels."""


class _Row(NamedTuple):
    line: int
    """From 1; where the row begins."""
    text: str
    label: str | None


def read_jsonl(file: Path, text: str = "text", label: str | None = "label") -> list[Document]:
    """One JSON object per line, as SciERC, ACL-ARC and ChemProt have it; other keys are ignored,
    and blank lines.

    Args:
        text: key of the text.
        label: key of the class, a text or a whole number; None reads no labels.

    Raises:
        UserError: not UTF-8, a line that is no JSON object or lacks a key, an empty text or label,
            no text at all, or an unreadable file.
    """
    rows = []
    for number, line in _lines(file):
        if _is_empty(line):
            continue
        where = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON ({error}): one object per line") from None
        if not isinstance(value, dict):
            raise UserError(f"{where}: not a JSON object with the key {text!r}")
        name = None if label is None else str(_value(value, label, (str, int), where))
        rows.append(_Row(number, _value(value, text, (str,), where), name))
    return _documents(file, rows)


def read_parallel(text_file: Path, label_file: Path, mapping_file: Path) -> list[Document]:
    """One text per line and its label on the same line of another file, as TweetEval has it.

    Args:
        mapping_file: lines "<label>\\t<name of the class>".

    Raises:
        UserError: unequal numbers of lines, a label that the mapping does not have, a faulty
            mapping, not UTF-8, an empty text, no text at all, or an unreadable file.
    """
    names = _read_mapping(mapping_file)
    texts, labels = list(_lines(text_file)), list(_lines(label_file))
    if len(texts) != len(labels):
        raise UserError(
            f"{text_file} has {len(texts)} lines, {label_file} has {len(labels)}: they must "
            "correspond line by line"
        )
    rows = []
    for (number, text), (_, label) in zip(texts, labels, strict=True):
        if label.strip() not in names:
            raise UserError(
                f"{label_file}, line {number}: the label {label.strip()!r} is not in {mapping_file}"
            )
        rows.append(_Row(number, text, names[label.strip()]))
    return _documents(text_file, rows)


def read_table(file: Path, text: str = "text", label: str | None = "label") -> list[Document]:
    """A .csv or .tsv file whose first line names the columns; other columns are ignored.

    In a .csv file a field in double quotes may hold commas and line ends. A .tsv file has no
    quotes: in tweets they are text, and one that is never closed would swallow the rest. Blank
    lines are skipped, but where there is only one column: within the file they could be texts.

    Args:
        text: column of the text.
        label: column of the class; None reads no labels.

    Raises:
        UserError: another suffix, a missing column, a line with another number of fields, an
            empty text or label, not UTF-8, no text at all, or an unreadable file.
    """
    if file.suffix.lower() not in (".csv", ".tsv"):
        raise UserError(f"{file}: a table must be a .csv or a .tsv file")
    plain: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    options = plain if file.suffix.lower() == ".tsv" else {"delimiter": ","}
    (_, header), *below = tables.rows(file, strict=True, **options)
    wanted = {"text_column": text} | ({} if label is None else {"label_column": label})
    advice = f"name one with {' or '.join(wanted)}"
    places = tables.places(file, header, list(wanted.values()), advice, options["delimiter"])
    rows = []
    for line, fields in below:
        if not fields and len(header) > 1:
            continue
        fields = fields or [""]
        if len(fields) != len(header):
            raise UserError(
                f"{file}, line {line}: {len(fields)} fields, the first line names {len(header)}"
            )
        chosen = [fields[place] for place in places]
        rows.append(_Row(line, chosen[0], None if label is None else chosen[1]))
    return _documents(file, rows)


def read_lines(file: Path) -> list[Document]:
    """One text per line, without labels; blank lines at the end are left out.

    Raises:
        UserError: not UTF-8, a blank line before a text, no text at all, or an unreadable file.
    """
    rows = [_Row(number, line, None) for number, line in _lines(file)]
    while rows and _is_empty(rows[-1].text):
        rows.pop()
    return _documents(file, rows)


def label_map(train: Sequence[Document]) -> dict[str, int]:
    """The classes that occur in `train`: their sorted names -> 0, 1, ...

    Raises:
        UserError: a document without a label, or fewer than two classes.
    """
    if without := [document.id for document in train if document.label is None]:
        raise UserError(f"{len(without)} training texts have no label: {some(without)}")
    names = sorted({document.label for document in train if document.label is not None})
    if len(names) < 2:
        raise UserError(
            f"a classifier needs at least two classes, the training texts have {len(names)}"
        )
    return {name: number for number, name in enumerate(names)}


def encode_labels(documents: Sequence[Document], mapping: dict[str, int], split: str) -> np.ndarray:
    """The labels of a split as int32 [documents].

    Args:
        mapping: from `label_map`.
        split: its name, for the message.

    Raises:
        UserError: documents whose class `mapping` does not have, or without a label.
    """
    if unseen := [document for document in documents if document.label not in mapping]:
        classes = some(sorted({str(document.label) for document in unseen}))
        raise UserError(
            f"{len(unseen)} of {len(documents)} {split} texts have a label that no training text "
            f"has ({classes}), first {unseen[0].id}"
        )
    return np.array([mapping[str(document.label)] for document in documents], np.int32)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines with their numbers from 1, without "\\n" or "\\r\\n"."""
    pieces = tables.read(file).split("\n")
    if not pieces[-1]:  # a line end closes the last line and starts no further one
        pieces.pop()
    for number, piece in enumerate(pieces, 1):
        yield number, piece.removesuffix("\r")


def _value(value: dict, key: str, kinds: tuple[type, ...], where: str) -> Any:
    if key not in value:
        raise UserError(f"{where}: no key {key!r}; the keys are {some(list(value)) or 'none'}")
    found = value[key]
    if not isinstance(found, kinds) or isinstance(found, bool):
        wanted = " or a whole number" if int in kinds else ""
        raise UserError(f"{where}: {key!r} must be a text{wanted}, it is {str(found)[:40]!r}")
    return found


def _read_mapping(file: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for number, line in _lines(file):
        label, _, name = (part.strip() for part in line.partition("\t"))
        if not label or not name:
            raise UserError(
                f"{file}, line {number}: expected '<label><tab><name>', got {line[:40]!r}"
            )
        if label in names or name in names.values():
            raise UserError(f"{file}, line {number}: {label} or {name} stands there twice")
        names[label] = name
    return names


def _documents(file: Path, rows: Sequence[_Row]) -> list[Document]:
    """Refuses what cannot be learnt from, and gives each row its id."""
    if not rows:
        raise UserError(f"{file}: no text in it")
    labels = [row.label for row in rows if row.label is not None]
    for name, found in (("text", [row.text for row in rows]), ("label", labels)):
        empty = [str(row.line) for row, value in zip(rows, found, strict=False) if _is_empty(value)]
        if empty:
            raise UserError(
                f"{file}: {len(empty)} of {len(rows)} rows have an empty {name}: line "
                f"{some(empty)}; fill them in or remove them"
            )
    for row in rows:
        if not _is_unicode(f"{row.text}{row.label}"):
            raise UserError(f"{file}, line {row.line}: half a character (a lone surrogate)")
    return [
        # Spaces around a label, unlike those of a text, are of how it was typed: no further class.
        Document(f"{file.stem}/{n}", row.text, row.label and row.label.strip())
        for n, row in enumerate(rows)
    ]


def _is_empty(value: str) -> bool:
    return not value.strip()


def _is_unicode(text: str) -> bool:
    # JSON can spell halves of a character (\ud800), which no tokenizer and no file takes.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
