"""metrics.jsonl of a stage: read again, gone on with, and whether it lacks something."""

import json
import sys
from pathlib import Path
from typing import TextIO

from sdfp import checked, files

NAME = "metrics.jsonl"
PROBED = ("probe_knn", "probe_linear")
"""What a probe's line has, in percent, unless the features were not finite."""
LARGEST = sys.float_info.max
"""As a bound, this refuses NaN and infinity, too. Of a loss they may be true."""


def read(directory: Path) -> list[dict[str, float]]:
    """The lines of a stage, in order; of probes and of steps. One that is in the making, was cut
    by a kill or damaged by a disk, is left out."""
    return [line for line in map(_parsed, _texts(directory / NAME)) if line]


def _texts(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _parsed(text: str) -> dict[str, float]:
    """A line of metrics; empty where it is not a whole one."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if checked.misfit(line, {str: checked.NUMBER}) or not 0 <= line.get("step", -1) <= LARGEST:
        return {}
    return line if _whole_probe(line) else {}


def _whole_probe(line: dict[str, float]) -> bool:
    """Whether a line is of no probe, or of one that has all that its readers count with."""
    if not line.keys() & set(PROBED):
        return True
    return (
        all(0 <= line.get(name, -1) <= 100 for name in PROBED)
        and 0 <= line.get("probe_seconds", -1) <= LARGEST
        and 0 < line.get("probe_examples", 1) <= LARGEST  # older ones do not say
    )


def go_on(directory: Path, done: int) -> TextIO:
    """Opens it after its last line that the checkpoint at step `done` knows.

    Raises:
        WorkdirError: there is a folder in its place.
    """
    path, kept = directory / NAME, []
    for text in _texts(path):
        line = _parsed(text)
        if done and line and line["step"] <= done:
            kept.append(text + "\n")
    with files.whole(path) as temporary:  # a second kill must not lose the first part
        temporary.write_text("".join(kept))
    return path.open("a")


def lacking(directory: Path, last: int, interrupted: bool = False) -> str:
    """What to warn of where its lines do not reach step `last`, or some are damaged; else "".

    Args:
        interrupted: the stage was, perhaps by a kill in the middle of a line.
    """
    path = directory / NAME
    lines = [_parsed(text) for text in _texts(path)]
    if interrupted and lines and not lines[-1]:
        lines.pop()
    damaged = lines.count({})
    end = max((line["step"] for line in lines if "examples" in line), default=0)  # not of a probe
    told = [
        what
        for wrong, what in (
            (not path.is_file(), "there is no such file"),
            (damaged, f"damaged lines, which are left out: {damaged}"),
            (end < last, f"it ends at step {end:.0f}, and the stage did {last}"),
        )
        if wrong
    ]
    rest = "the curves lack that, the parameters are as they were"
    return f"{path}: {'; '.join(told)}: {rest}" if told else ""
