"""What all figures share: their look, a caption, and how one is written."""

import csv
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart by the colour-blind, too (Okabe and Ito)."""

# Without a date or a version: the same numbers give the same bytes.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sdfp",
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.grid": True,
}
METADATA = {"png": {"Software": None}, "svg": {"Date": None}}
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def style() -> AbstractContextManager:
    """The look of what is made and written within it."""
    return matplotlib.rc_context(STYLE)


def panels(caption: str, count: int, width: float = 5.0) -> tuple[Figure, Sequence[Axes]]:
    """A row of `count` axes, each `width` inches wide, with a caption below all of them."""
    figure = Figure(figsize=(count * width, 4.2), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    text = caption.encode("utf-8", "backslashreplace").decode()  # it may hold names of files
    lines = [textwrap.fill(line, int(count * width * 15)) for line in text.splitlines()]
    figure.supxlabel("\n".join(lines), fontsize=8, parse_math=False)
    return figure, axes


def write(out: Path, name: str, rows: Sequence[Mapping[str, Any]], figure: Figure) -> None:
    """OUT/name.csv, .png and .svg. Raises OSError."""
    # A name from another encoding must not be the end of a figure.
    path = out / f"{name}.csv"
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for kind, metadata in METADATA.items():
        figure.savefig(out / f"{name}.{kind}", dpi=120, metadata=metadata)


def inline(figure: Figure, name: str) -> str:
    """A figure as an <svg> element for within an HTML page, made within `style`.

    Args:
        name: another one for each figure of a page. The ids that an SVG refers to are made from it:
            equal ones would have a figure drawn with the parts of another.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=NO_METADATA)
    text = file.getvalue()
    # Groups are numbered anew in every figure, and nothing refers to them.
    return re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
