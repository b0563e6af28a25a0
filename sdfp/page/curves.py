"""The pictures of a report as SVG: scores of all seeds, losses and probes against steps."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sdfp import drawing, report
from sdfp.comparison import PLAIN, Line
from sdfp.page.stages import Stage, terms
from sdfp.train import probe

MOST = 400
"""Points of a line. Nothing is averaged: of more, the lowest and the highest of each piece stay."""
MOST_OF_ALL, LEAST = 2000, 40
"""Points of all lines of a panel, and of each at least: many seeds must not make a large page."""
NAMED = 10
"""Lines: of more none is named in a legend."""
FEW = 40  # points that are marked as such
WIDE = 10  # from this ratio of the largest loss to the smallest on, the axis is logarithmic
WHOLE, BAND = "#000000", "#555555"

Limits = tuple[bool, float, float]
"""Whether an axis is logarithmic, and from where to where."""


def scores(lines: Sequence[Line], label: str) -> str:
    """Every score of every row: a dot per seed, a stroke at the mean; dashed: plain fine-tuning."""
    with drawing.style():
        figure = Figure(figsize=(5.6, 0.9 + 0.32 * len(lines)), layout="constrained")
        ax = figure.add_subplot()
        for place, line in enumerate(lines):
            ax.plot(line.values, [place] * line.n, "o", color=drawing.COLOURS[0], alpha=0.55)
            if line.mean is not None:
                ax.plot([line.mean] * 2, [place - 0.3, place + 0.3], color=WHOLE, linewidth=1.6)
            if line.mean is not None and line.method == PLAIN:
                ax.axvline(line.mean, color=BAND, linestyle="--", linewidth=0.9, zorder=1)
        ax.set_yticks(range(len(lines)), [_ascii(x.method) for x in lines], parse_math=False)
        ax.set(xlabel=label, ylim=(len(lines) - 0.5, -0.5))
        return drawing.inline(figure, "scores")


def losses(stage: Stage) -> str:
    """Each term of a masked stage's loss, and their sum where there are several. Thin: of the steps
    that a line stands for, the one with the largest loss."""
    names, peak = terms(stage), report.PEAKS["loss"]
    peaks = any(line.get(peak, -math.inf) > line["loss"] for line in stage.lines)
    with drawing.style():
        figure, ax = _axes()
        colours = iter(drawing.COLOURS)
        if peaks:
            _line(ax, stage.lines, peak, BAND, "loss, largest", width=0.6)
        for name in names:
            whole = name == "loss" and len(names) > 1
            colour = WHOLE if whole else next(colours, WHOLE)
            _line(ax, stage.lines, name, colour, "loss (all terms)" if whole else name)
        shown = (*names, peak) if peaks else names
        _scale(ax, limits(line[name] for line in stage.lines for name in shown if name in line))
        ax.set(ylabel="loss, training", xlim=(0, stage.steps or stage.done or 1))
        ax.legend()
        return drawing.inline(figure, f"losses of {_ascii(stage.name)}")


def probes(stage: Stage) -> str:
    """Accuracy of frozen features, ± its standard error; dashed: before the stage."""
    with drawing.style():
        figure, ax = _axes()
        for (name, told), colour in zip(probe.NAMES.items(), drawing.COLOURS, strict=False):
            own = [line for line in stage.probes if name in line]
            _line(ax, own, name, colour, told)
            _band(ax, own, name, colour)
            if own and own[0]["step"] == 0:
                ax.axhline(own[0][name], color=colour, linestyle="--", linewidth=0.8)
        ax.set(ylabel="probe's accuracy (%)", xlim=(0, stage.steps or stage.done or 1))
        ax.margins(y=0.15)
        ax.legend()
        return drawing.inline(figure, f"probes of {_ascii(stage.name)}")


def finetuning(row: str, stages: Sequence[Stage], shared: Limits | None) -> str:
    """The loss of each seed of a row.

    Args:
        shared: of the axis of all rows, see `limits`.
    """
    most = min(MOST, max(LEAST, MOST_OF_ALL // len(stages)))
    with drawing.style():
        figure, ax = _axes()
        for number, stage in enumerate(stages):
            colour = drawing.COLOURS[number % len(drawing.COLOURS)]
            _line(ax, stage.lines, "loss", colour, f"seed {stage.seed}".strip(), most)
        _scale(ax, shared)
        ax.set(ylabel="loss, training", xlim=(0, max(s.steps or s.done or 1 for s in stages)))
        if len(stages) <= NAMED:
            ax.legend(ncols=2 if len(stages) > 4 else 1)
        return drawing.inline(figure, f"fine-tuning of {_ascii(row)}")


def limits(values: Iterable[float]) -> Limits | None:
    """The axis that shows all of these losses, with room; None where none is finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    if low > 0 and high / low >= WIDE:
        room = (high / low) ** 0.06
        return True, low / room, high * room
    room = 0.06 * (high - low) or abs(high) * 0.06 or 1.0
    return False, low - room, high + room


def thin(values: np.ndarray, most: int = MOST) -> np.ndarray:
    """Which of the values [n] to draw: all, or at most `most`, and with them every extreme.

    Returns:
        Positions, increasing; the first and the last are among them.
    """
    if len(values) <= most:
        return np.arange(len(values))
    finite = np.nan_to_num(values, nan=np.inf, posinf=np.inf)
    edges = np.linspace(0, len(values), (most - 2) // 2 + 1).astype(int)
    kept = {0, len(values) - 1}
    for start, end in itertools.pairwise(edges):
        kept |= {start + int(finite[start:end].argmin()), start + int(finite[start:end].argmax())}
    return np.array(sorted(kept))


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.1))
    figure.subplots_adjust(left=0.155, right=0.97, bottom=0.16, top=0.96)
    ax = figure.add_subplot()
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.set(xlabel="step")
    return figure, ax


def _line(
    ax: Axes,
    lines: Sequence[Mapping[str, float]],
    name: str,
    colour: str,
    label: str,
    most: int = MOST,
    width: float = 1.3,
) -> None:
    own = [line for line in lines if name in line]
    values = np.array([line[name] for line in own], np.float64)
    values[~np.isfinite(values)] = np.nan  # a gap
    kept = thin(values, most)
    marker = "." if len(own) <= FEW else ""
    steps = np.array([line["step"] for line in own])
    label = _ascii(label).replace("$", r"\$")  # no formula
    ax.plot(steps[kept], values[kept], marker=marker, color=colour, linewidth=width, label=label)


def _band(ax: Axes, lines: Sequence[Mapping[str, float]], name: str, colour: str) -> None:
    """One standard error to both sides, of the probes that say of how many examples they are."""
    own = [line for line in lines if "probe_examples" in line]
    values = np.array([line[name] for line in own])
    errors = np.array([probe.standard_error(line, name) for line in own])
    steps = [line["step"] for line in own]
    ax.fill_between(steps, values - errors, values + errors, color=colour, alpha=0.15, linewidth=0)


def _scale(ax: Axes, shared: Limits | None) -> None:
    if shared is None:
        return
    log, low, high = shared
    if log:
        ax.set_yscale("log")
        narrow = high / low < 1000
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(low, high)


def _ascii(text: str) -> str:
    """What the font of a figure has, whatever somebody called something."""
    return ascii(text)[1:-1]
