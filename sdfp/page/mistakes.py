"""What a fine-tuned model gets wrong: confusion matrix, recall, the worst mistakes."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sdfp import checked
from sdfp.comparison import Run
from sdfp.page import pictures, verdicts
from sdfp.rendering import NAMES
from sdfp.train import mistakes as kept

TABLE = 20
"""Up to so many classes the matrix is a table; of more it is a picture."""
PAIRS, LOWEST = 15, 10
SIDE = 600
"""Pixels of the picture of a matrix, about."""
RIGHT, WRONG = (0, 114, 178), (213, 94, 0)
STRONGEST = 0.75
"""Opacity of a whole row's share: dark text stays readable on it."""
WIDEST = 256
"""Pixels of an example's image."""


class Cell(NamedTuple):
    """Of the table of a matrix."""

    count: int
    style: str
    what: str


class Confusion(NamedTuple):
    """A confusion matrix, ready to be shown."""

    names: list[str]
    rows: list[tuple[str, list[Cell], str]]
    """Class, its cells, its recall; empty where there are too many classes for a table."""
    picture: str
    """data: URI; "" where there is a table."""
    pairs: list[tuple[str, str, int, int]]
    """True class, predicted class, how often, of how many; the most frequent first."""
    lowest: list[tuple[str, str, int]]
    """Class, recall, examples: the classes of lowest recall; empty where there is a table."""
    right: int
    examples: int


class Judged(NamedTuple):
    """What the first seed of a row gets wrong."""

    name: str
    anchor: str
    score: str
    stage: str
    confusion: Confusion | None
    worst: list[dict[str, Any]]
    """Each has id, label, predicted, probability, and `text` or `picture` where there is one."""
    shown: str
    """What is known of the examples themselves: "kept", "unknown" or "withheld"."""
    best: bool
    """Whether it is the row of the highest score."""


def judged(workdir: Path, run: Run | None, withheld: bool) -> list[Judged]:
    """The first seed of each row that has one.

    Args:
        withheld: whether the page is to hold no example of the data.
    """
    first = {}
    for entry in run.results.get("results", ()) if run else ():
        first.setdefault(entry["method"], entry)
    best = verdicts.best(run.lines) if run else None
    made = []
    for line in run.lines if run else ():
        entry = first.get(line.method, {})
        if "stage" not in entry:  # nothing was measured, or by an older version
            continue
        directory = workdir / "stages" / entry["stage"]
        found, shown = worst(directory, withheld)
        name = NAMES.get(entry["metric"], entry["metric"])
        made.append(
            Judged(
                name=line.method,
                anchor=f"row-{len(made) + 1}",
                score=f"{line.split} {name} {entry['value']:.2f}",
                stage=entry["stage"],
                confusion=confusion(directory),
                worst=found,
                shown=shown,
                best=line is best,
            )
        )
    return made


def confusion(directory: Path) -> Confusion | None:
    """What confusion.csv of a stage holds; None where there is none, or not a whole one."""
    found = _read_confusion(directory / "confusion.csv")
    if found is None:
        return None
    names, matrix = found
    totals, right = matrix.sum(axis=1), matrix.diagonal()
    share = matrix / np.maximum(totals, 1)[:, None]
    recall = [f"{100 * r / t:.1f} %" if t else "–" for r, t in zip(right, totals, strict=True)]
    small = len(names) <= TABLE
    wrong = matrix * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    places = [divmod(int(place), len(names)) for place in order]
    pairs = [(names[i], names[j], int(wrong[i, j]), int(totals[i])) for i, j in places]
    lowest = sorted(np.flatnonzero(totals), key=lambda i: share[i, i])[:LOWEST]
    return Confusion(
        names=names,
        rows=_table(names, matrix, share, recall) if small else [],
        picture="" if small else _matrix_picture(share),
        pairs=[pair for pair in pairs if pair[2]],
        lowest=[] if small else [(names[i], recall[i], int(totals[i])) for i in lowest],
        right=int(right.sum()),
        examples=int(totals.sum()),
    )


def _read_confusion(path: Path) -> tuple[list[str], np.ndarray] | None:
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = csv.reader(file)
        matrix = np.array([[int(cell) for cell in row[1:]] for row in rows], np.int64)
    except (OSError, ValueError, csv.Error):  # not there, or just being written
        return None
    names = header[1:]
    return (names, matrix) if names and matrix.shape == (len(names), len(names)) else None


def _table(
    names: Sequence[str], matrix: np.ndarray, share: np.ndarray, recall: Sequence[str]
) -> list[tuple[str, list[Cell], str]]:
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, other in enumerate(names):
            colour = ",".join(map(str, RIGHT if i == j else WRONG))
            style = f"background:rgba({colour},{STRONGEST * share[i, j]:.2f})"
            what = f"{name} as {other}: {100 * share[i, j]:.1f} %"
            cells.append(Cell(int(matrix[i, j]), style, what))
        rows.append((name, cells, recall[i]))
    return rows


def _matrix_picture(share: np.ndarray) -> str:
    """A square of some pixels per cell: blue where right, orange where wrong."""
    # The root makes single mistakes visible.
    strength = np.sqrt(share)[..., None]
    right = np.eye(len(share), dtype=bool)[..., None]
    pixels = 255 - strength * (255 - np.where(right, np.array(RIGHT), np.array(WRONG)))
    zoom = max(1, SIDE // len(share))
    pixels = np.rint(pixels).astype(np.uint8).repeat(zoom, axis=0).repeat(zoom, axis=1)
    return pictures.embed_exactly(Image.fromarray(pixels))


def worst(directory: Path, withheld: bool) -> tuple[list[dict[str, Any]], str]:
    """`Judged.worst` and `Judged.shown` of a stage. Older ones have predictions.csv only."""
    path = directory / kept.LIST
    mistake = {"id": str, "label": str, "predicted": str, "probability": checked.NUMBER}
    shape = [mistake | {"text?": str, "image?": str}]
    advice = f"delete {directory}/evaluation.json and run the same command: it measures again"
    found = checked.read_json(path, advice, shape) if path.is_file() else []
    if not withheld and any({"text", "image"} & mistake.keys() for mistake in found):
        return [mistake | _picture_of(directory, mistake) for mistake in found], "kept"
    return _of_predictions(directory / "predictions.csv"), "withheld" if withheld else "unknown"


def _picture_of(directory: Path, mistake: Mapping[str, Any]) -> dict[str, pictures.Picture]:
    if "image" not in mistake:
        return {}
    made = pictures.embed(directory / kept.PICTURES / Path(mistake["image"]).name, WIDEST)
    return {"picture": made} if made else {}


def _of_predictions(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [row for row in csv.DictReader(file) if row["label"] != row["predicted"]]
        rows.sort(key=lambda row: -float(row["probability"]))
    except (OSError, ValueError, TypeError, KeyError, csv.Error):  # see `_read_confusion`
        return []
    return [dict(row) | {"probability": float(row["probability"])} for row in rows[: kept.MOST]]
