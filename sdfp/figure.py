"""The paper's figures, of runs that are there.

    python -m sdfp.figure 1 --workdir runs/steps_500 runs/steps_5000 --out figures

    1  score against steps of further pre-training
    3  score against the number of training labels
    4  score against rounds of self-distillation
    5  test loss - training loss; distance from theta_init, by method and by rounds

writes figure1.png, figure1.svg and the numbers, figure1.csv. Runs differ in what is along the axis
(for 5: in rounds) and in nothing else; each is made by sdfp.table into a work directory of its own.
Nothing is trained here.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, ScalarFormatter
from matplotlib.transforms import offset_copy

from sdfp import cli, drawing, points, report
from sdfp.comparison import PLAIN
from sdfp.points import (
    DISTANCE,
    DISTILLED,
    FURTHER,
    GAP,
    LABELS,
    ROUNDS,
    SCORE,
    STEPS,
    Axis,
    Point,
    Source,
)
from sdfp.rendering import NAMES
from sdfp.table_notes import NOT_IN_SPREAD, ONE_CHECKPOINT
from sdfp.types import UserError, one_line

AXES = {1: STEPS, 3: LABELS, 4: ROUNDS, 5: ROUNDS}
MARKERS = "osD^vPX"
BAND = "#555555"
NAMED = {PLAIN: BAND, DISTILLED: drawing.COLOURS[0], FURTHER: drawing.COLOURS[1]}
APART = 5  # points of 1/72 inch between the bars of two lines at one x
WIDE = 10  # from this ratio of the largest x to the smallest on, x is logarithmic
MOST_TICKS = 8  # that fit on a linear x

Found = tuple[list[Point], list[str]]


def lines(axis: Axis, sources: Sequence[Source]) -> Found:
    """Figures 1, 3 and 4."""
    found, notes = points.along(axis, sources, SCORE)
    if axis is LABELS:  # which plain fine-tuning depends on, too
        return found, notes
    band, more = points.plain(sources, SCORE)
    return band + found, more + notes


def analysis(sources: Sequence[Source]) -> Found:
    """Figure 5: panels a and b by method, c by rounds."""
    found, notes = points.along(ROUNDS, sources, DISTANCE, "c")
    bars = []
    for panel, measure in (("a", GAP), ("b", DISTANCE)):
        ours = points.along(ROUNDS, sources, measure, panel)[0]
        ours = [p for p in ours if p.series == DISTILLED and p.x in (0, 1)]  # the paper's T' is 1
        if len(ours) != 2:
            raise UserError(
                f"figure 5 compares further_pretrain with {DISTILLED} of one round, not both are "
                f"there: name a work directory of {ROUNDS.wanted}"
            )
        band, more = points.plain(sources, measure, panel)
        bars += [*band, *ours]
    return [*bars, *found], [*notes, *more]


def draw_lines(figure: Figure, ax: Axes, found: Sequence[Point], axis: Axis) -> None:
    """A line per series with bars; a band for what does not depend on x."""
    along = [point for point in found if point.x is not None]
    names = list(dict.fromkeys(point.series for point in along))
    for point in found:
        if point.x is None:
            ax.axhline(point.mean, color=BAND, linestyle="--", label=point.series)
            spread = point.std or 0
            ax.axhspan(point.mean - spread, point.mean + spread, color=BAND, alpha=0.15, zorder=0)
    for number, name in enumerate(names):
        own = [point for point in along if point.series == name]
        line, caps, bars = ax.errorbar(
            [point.x for point in own if point.x is not None],
            [point.mean for point in own],
            [point.std or 0 for point in own],
            fmt=MARKERS[number % len(MARKERS)] + "-",
            color=_colour(name, names),
            capsize=3,
            label=name,
        )
        aside = offset_copy(
            ax.transData, figure, x=APART * (number - (len(names) - 1) / 2), units="points"
        )
        for artist in (line, *caps, *bars):  # afterwards: the limits are found without it
            artist.set_transform(aside)
    _ticks(ax, sorted({point.x for point in along if point.x is not None}))
    ax.set(xlabel=axis.label)
    ax.legend()


def _colour(name: str, names: Sequence[str]) -> str:
    """The same for a method in all figures, as far as the paper has it."""
    others = [other for other in names if other not in NAMED]
    free = [colour for colour in drawing.COLOURS if colour not in NAMED.values()]
    return NAMED[name] if name in NAMED else free[others.index(name) % len(free)]


def _ticks(ax: Axes, values: Sequence[int]) -> None:
    """At the measured values; where some are too close for that, on a linear axis, regularly."""
    wide = values[0] > 0 and values[-1] / values[0] >= WIDE
    room = (values[-1] - values[0]) / MOST_TICKS
    if wide:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
    if wide or all(after - before >= room for before, after in pairwise(values)):
        ax.xaxis.set_major_locator(FixedLocator(values))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=MOST_TICKS, integer=True))
    ax.margins(x=0.08)


def draw_bars(ax: Axes, found: Sequence[Point]) -> None:
    """A bar per method."""
    for place, point in enumerate(found):
        colour, error = NAMED[point.method], point.std or 0
        ax.bar(place, point.mean, yerr=error, color=colour, capsize=4, width=0.6)
    named = [point.method.replace("_", "\n") for point in found]
    ax.set_xticks(range(len(found)), named)
    ax.axhline(0, color="#000000", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.grid(axis="x", visible=False)


def draw(number: int, found: Sequence[Point], source: Source, caption: str) -> Figure:
    """A figure of its points; `source` tells metric and split."""
    line, axis = source.run.lines[0], AXES[number]
    title = source.run.results["config"].get("data", {}).get("name", "")
    if number != 5:
        figure, (ax,) = drawing.panels(caption, 1, 7)
        draw_lines(figure, ax, found, axis)
        ax.set(ylabel=f"{line.split} {NAMES.get(line.metric, line.metric)}", title=title)
        return figure
    figure, axes = drawing.panels(caption, 3, 4.6)
    figure.suptitle(title)
    of = lambda panel: [point for point in found if point.panel == panel]
    draw_bars(axes[0], of("a"))
    axes[0].set(title="(a) generalisation gap", ylabel=f"{line.split} loss − training loss (nats)")
    draw_bars(axes[1], of("b"))
    draw_lines(figure, axes[2], of("c"), axis)
    for ax, panel in zip(
        axes[1:],
        ("(b) Euclidean distance by method", "(c) Euclidean distance by rounds"),
        strict=True,
    ):
        ax.set(title=panel, ylabel=r"distance of the encoder from $\theta_{init}$")
    return figure


def caption(found: Sequence[Point], notes: Sequence[str]) -> str:
    """What a point and its bar are, and what a reader must know."""
    seeds = sorted({point.seeds for point in found})
    told = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    several = max(point.pretrain_seeds for point in found)
    more = f" × up to {several} pre-training seeds" if several > 1 else ""
    missing = " (none where there is one value only)" if any(p.std is None for p in found) else ""
    spread = (
        f"error bars and bands{missing}: ± 1 standard deviation of the sample (n − 1) over "
        f"{ONE_CHECKPOINT} point; {NOT_IN_SPREAD}{_repeated(found)}"
    )
    plural = "" if told == "1" else "s"
    first = f"Mean over {told} fine-tuning seed{plural}{more}; {spread}."
    return "\n".join([first, *(f"{note}." for note in dict.fromkeys(notes))])


def _repeated(found: Sequence[Point]) -> str:
    """Which points hold the variance of pre-training all the same."""
    repeated: dict[tuple[str, int], list[str]] = {}
    for point in found:
        if point.pretrain_seeds > 1:
            repeated.setdefault((point.workdir, point.pretrain_seeds), []).append(point.method)
    told = [
        f"{', '.join(dict.fromkeys(methods))} of {workdir} ({times} pre-training seeds)"
        for (workdir, times), methods in repeated.items()
    ]
    return f", except for {'; '.join(told)}" if told else ""


def make(number: int, workdirs: Sequence[Path], out: Path) -> None:
    """Writes OUT/figureNUMBER.png, .svg and .csv.

    Raises:
        UserError: runs that are lacking or do not fit together, a folder that cannot be written.
    """
    axis, sources = AXES[number], points.open_sources(workdirs)
    found, notes = analysis(sources) if number == 5 else lines(axis, sources)
    told = caption(found, [*notes, *points.notes(axis, sources)])
    name = f"figure{number}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with drawing.style():
            figure = draw(number, found, sources[0], told)
            drawing.write(out, name, [point._asdict() for point in found], figure)
    except OSError as error:
        raise UserError(f"--out {out}: {one_line(error)}; name a folder to write to") from None
    report.say(f"{told}\n{out / name}.png, .svg and .csv")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 for a mistake of the user's."""
    parser = cli.parser("sdfp.figure", __doc__)
    add = parser.add_argument
    add("number", type=int, choices=sorted(AXES), help="as in the paper")
    several = "of runs that are there; several, or the flag repeated"
    workdirs = {"nargs": "+", "action": "extend", "metavar": "W", "help": several}
    add("--workdir", type=cli.path, required=True, **workdirs)
    add("--out", type=cli.path, required=True, metavar="FOLDER", help="made where it is not there")
    given = parser.parse_args(argv)
    return cli.exit_code(lambda: make(given.number, given.workdir, given.out))


if __name__ == "__main__":
    sys.exit(main())
