"""Files of text, as their users save them: read whole, and cut into the rows of a table."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdfp.types import UserError, some

# Of this process. A text may be longer than the 131,072 characters that are usual; to take the
# rest of a file for one field, where a quote is never closed, costs no more than to have read it.
csv.field_size_limit(2**31 - 1)


class Row(NamedTuple):
    """One row of a table."""

    line: int
    """From 1; where it begins."""
    fields: list[str]
    """None in a blank line."""


def read(file: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")  # editors put a byte order mark before the first line
    except UnicodeDecodeError as error:
        # error.object is what follows a byte order mark, which holds no line end.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{file}, line {line}: not UTF-8 ({error.reason}): save it as such"
        ) from None
    if text.count("\0") > len(text) // 100:  # a single one in a scraped text does no harm
        line = text.count("\n", 0, text.find("\0")) + 1
        raise UserError(f"{file}, line {line}: a null character; is it UTF-16? Save it as UTF-8")
    return text


def rows(file: Path, **options: Any) -> list[Row]:
    """The rows of a table, the first of them its header, empty where the file is; blank lines at
    the end are left out.

    Where the header ends in "\\n", only that ends a line; else "\\r", as on old Macintoshes.

    Args:
        options: of `csv.reader`.

    Raises:
        UserError: it cannot be read, is not UTF-8, or is no table.
    """
    text = read(file)
    old = "\r" in text.split("\n", 1)[0].removesuffix("\r")
    reader = csv.reader(io.StringIO(text, newline="" if old else "\n"), **options)
    found, line = [], 1
    try:
        for fields in reader:
            found.append(Row(line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{file}, line {line}: {error}, in the row that begins there: check its quotes"
        ) from None
    while found and not found[-1].fields:
        found.pop()
    return found or [Row(1, [])]


def places(
    file: Path, header: list[str], wanted: Sequence[str], advice: str, delimiter: str = ","
) -> list[int]:
    """Where the wanted columns stand.

    Args:
        header: the fields of the first line.
        advice: what to do where one is missing.

    Raises:
        UserError: a column that is not there, or there twice.
    """
    names = [name.strip() for name in header]
    told = f"the columns are {some(names) or 'none'}; {advice}"
    if len(names) == 1 and (other := next((mark for mark in ",;\t|" if mark in names[0]), "")):
        told = f"its columns are separated by {other!r}: separate them by {delimiter!r}"
    if missing := [name for name in wanted if name not in names]:
        raise UserError(f"{file}, line 1: no column {' and '.join(map(repr, missing))}; {told}")
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise UserError(f"{file}, line 1: {names.count(twice[0])} columns {twice[0]!r}; {told}")
    return [names.index(name) for name in wanted]


def values(file: Path, columns: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """The values of some columns of a .csv file, each row with "file, line n" for messages; no
    spaces around them, and blank lines are skipped.

    Raises:
        UserError: not a table in UTF-8, a column or a value is missing, or no row.
    """
    (_, header), *below = rows(file, skipinitialspace=True)
    advice = f"the first line must name {' and '.join(columns)}, separated by commas"
    wanted = places(file, header, columns, advice)
    found = []
    for line, fields in below:
        where = f"{file}, line {line}"
        # A comma at the end adds nothing.
        if any(extra.strip() for extra in fields[len(header) :]):
            raise UserError(
                f"{where}: more fields than the first line names; put double quotes around a "
                'value that holds a comma ("a, b")'
            )
        row = [fields[place].strip() if place < len(fields) else "" for place in wanted]
        if fields and not all(row):
            raise UserError(f"{where}: empty {' or '.join(columns)}")
        if fields:
            found.append((where, row))
    if not found:
        raise UserError(f"{file}: no row below the first line")
    return found
