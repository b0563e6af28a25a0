"""Which row is ahead, and whether the seeds show it."""

from collections.abc import Sequence

from sdfp.comparison import PLAIN, Line
from sdfp.rendering import LEVEL

AHEAD, BEHIND = "ahead", "behind"
ALIKE, UNTESTED = "no difference shown", "not tested"

MEANING = (
    f"verdict: ahead of or behind {PLAIN} with p < {LEVEL}; no difference shown: the spread over "
    "seeds explains it as well; not tested: fewer than two seeds in common, or no spread at all."
)


def verdict(line: Line) -> str:
    """AHEAD, BEHIND, ALIKE or UNTESTED; "" of plain fine-tuning, and where that is not there."""
    if line.difference is None:
        return ""
    if line.p_value is None:
        return UNTESTED
    if line.p_value >= LEVEL:
        return ALIKE
    return AHEAD if line.difference > 0 else BEHIND


def best(lines: Sequence[Line]) -> Line | None:
    """The row of the highest mean, of equal ones the first; None where nothing was measured."""
    measured = [line for line in lines if line.mean is not None]
    return max(measured, key=lambda line: line.mean or 0.0, default=None)


def difference(line: Line) -> str:
    """E.g. "+1.20 points (p = 0.031)"; of a row that is compared."""
    by = f"{line.difference:+.2f} points".replace("-", "−")
    if line.p_value is None:
        return by
    return f"{by} (p {'< 0.001' if line.p_value < 0.0005 else f'= {line.p_value:.3f}'})"
