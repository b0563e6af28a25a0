"""metrics.jsonl of a stage: read again, gone on with, and whether it lacks something."""

import json
import math
import string
import sys
from pathlib import Path
from typing import Any, TextIO

from sdfp import checked, files

NAME = "metrics.jsonl"
PROBED = ("probe_knn", "probe_linear")
"""What a probe's line has, in percent, unless the features were not finite."""
RIGHT = {name: f"{name}_right" for name in PROBED}
"""Which of a probe's examples were right: a bit for each, packed as hex. Older lines lack it."""
LARGEST = sys.float_info.max
"""As a bound, this refuses NaN and infinity, too. Of a loss they may be true."""


def read(directory: Path) -> list[dict[str, Any]]:
    """The lines of a stage, in order; of probes and of steps. All values are numbers but for those
    of `RIGHT`. A line that is in the making, was cut by a kill or damaged by a disk, is left out.
    """
    return [line for line in map(_parsed, _texts(directory / NAME)) if line]


def _texts(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _parsed(text: str) -> dict[str, Any]:
    """A line of metrics; empty where it is not a whole one."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(line, dict):
        return {}
    numbers = {key: value for key, value in line.items() if key not in RIGHT.values()}
    if checked.misfit(numbers, {str: checked.NUMBER}) or not 0 <= line.get("step", -1) <= LARGEST:
        return {}
    return line if _whole_probe(line) else {}


def _whole_probe(line: dict[str, Any]) -> bool:
    """Whether a line is of no probe, or of one that has all that its readers count with."""
    if not line.keys() & {*PROBED, *RIGHT.values()}:
        return True
    return (
        all(0 <= line.get(name, -1) <= 100 for name in PROBED)
        and 0 <= line.get("probe_seconds", -1) <= LARGEST
        and 0 < line.get("probe_examples", 1) <= LARGEST  # older ones do not say
        and all(_whole_right(line, name) for name in PROBED)
    )


def _whole_right(line: dict[str, Any], name: str) -> bool:
    """Whether what a probe says of single examples, if anything, is hex digits for so many of them,
    with as many bits set as the accuracy says."""
    if RIGHT[name] not in line:
        return True
    text, examples = line[RIGHT[name]], line.get("probe_examples", 0)
    if not isinstance(text, str) or not set(text) <= set(string.hexdigits):
        return False
    if not len(text) == 2 * math.ceil(examples / 8) > 0:
        return False
    return math.isclose(100 * int(text, 16).bit_count() / examples, line[name], abs_tol=0.01)


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
