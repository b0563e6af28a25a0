"""Rows of several work directories along one axis: the points of a figure, and what they lack.

An axis is something that runs differ in: steps of further pre-training, labels, rounds of
self-distillation. `along` places every row on it and refuses runs that it cannot compare.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdfp.comparison import PLAIN, Line, Run, deviation, open_runs
from sdfp.table_notes import made_with, settings
from sdfp.types import UserError, some

FURTHER, DISTILLED = "further_pretrain", "self_distillation"
PAPER = f"{PLAIN},{FURTHER},{DISTILLED}"

NOT_COMPARED = (
    *("name", "methods", "seeds", "run.", "parallel."),
    "precision",  # what "auto" came to is, see `table_notes.made_with`
    *("data.dir", "data.cache_dir", "source.dir", "source.cache_dir"),
)
"""Keys of the config that may differ without a note."""


class Source(NamedTuple):
    """A work directory, as it was named, and what is in it."""

    workdir: Path
    run: Run


class Point(NamedTuple):
    """A row's mean over its fine-tuning seeds; also a line of the CSV."""

    panel: str
    series: str
    """The line that it belongs to; `finetune` for plain fine-tuning."""
    axis: str
    x: int | None
    """None where the row does not depend on the axis."""
    measure: str
    mean: float
    std: float | None
    """Of the sample (n - 1); None for fewer than two values."""
    n: int
    seeds: int
    pretrain_seeds: int
    workdir: str
    method: str
    """The row of results.json."""
    settings: str


class Axis(NamedTuple):
    """What the x of a figure is."""

    name: str
    label: str
    key: str
    """Of the config: runs are made to differ in it, and only in it."""
    place: Callable[[Source, Line], tuple[str, int] | None]
    """The series of a row and its x; None where it is not on this axis."""

    @property
    def wanted(self) -> str:
        """The command that makes another run for it."""
        return (
            f"`python -m sdfp.table --config CONFIG --methods {PAPER} "
            f"--config.{self.key}=N --workdir W`, for each N a W of its own"
        )


class Measure(NamedTuple):
    """What the y of a figure is."""

    name: str
    of: Callable[[Mapping[str, Any], str], float]
    """(entry of results.json, reported split) -> its value. Raises KeyError where it has none."""


SCORE = Measure("score", lambda entry, _: entry["value"])
GAP = Measure("gap", lambda entry, split: entry[f"{split}_loss"] - entry["train_loss"])
DISTANCE = Measure("distance", lambda entry, _: entry["distance"])


def _by_steps(source: Source, line: Line) -> tuple[str, int] | None:
    """Those that were done, of which a method may do several times the config's: of the first
    stage, which is further pre-training with every method that has any."""
    if not line.pretrains:
        return None
    results = source.run.results
    records = {record["name"]: record for record in results["stages"]}
    entry = next(entry for entry in results["results"] if entry["method"] == line.method)
    if not entry["stages"]:
        raise KeyError("stages")
    return line.method, records[entry["stages"][0]]["steps"]


def _by_labels(source: Source, line: Line) -> tuple[str, int]:
    # Not config.data.train_labels: it is 0 where all are used.
    return line.method, source.run.results["data"]["counts"]["train"]


def _by_rounds(source: Source, line: Line) -> tuple[str, int] | None:
    """Round 0 is further pre-training (Figure 4 of the paper)."""
    parts, known = line.method.split("+"), source.run.results["config"]["method"]
    if DISTILLED in parts:
        own = known[DISTILLED]["rounds"]
        return line.method, line.varied.get(f"{DISTILLED}.rounds", own)
    if FURTHER in parts:
        return "+".join(DISTILLED if part == FURTHER else part for part in parts), 0
    return None


STEPS = Axis(
    *("steps", "steps of further pre-training", "stages.further_pretrain.steps", _by_steps)
)
LABELS = Axis("labels", "number of training labels", "data.train_labels", _by_labels)
ROUNDS = Axis(
    *("rounds", "rounds of self-distillation (0: further pre-training)"),
    *(f"method.{DISTILLED}.rounds", _by_rounds),
)


def open_sources(workdirs: Sequence[Path]) -> list[Source]:
    """The work directories, comparable with each other.

    Raises:
        UserError: as `open_runs`; no scores in one; another metric, split or data set.
    """
    sources = [Source(*pair) for pair in zip(workdirs, open_runs(workdirs), strict=True)]
    for workdir, run in sources:
        if not run.results.get("results"):
            raise UserError(f"{workdir}: all of its rows failed; name work directories with scores")
    first, *others = sources
    for other in others:
        for what, told in _nature(other).items():
            expected = _nature(first)[what]
            if told and expected and told != expected:  # older results do not tell all of it
                raise UserError(
                    f"{other.workdir}: its {what} is {told}, that of {first.workdir} is "
                    f"{expected}; one figure is of runs of one config file with the same {what}"
                )
    return sources


def _nature(source: Source) -> dict[str, str]:
    """By name what all runs of a figure must have in common; "" where it is not known."""
    results, split = source.run.results, source.run.results["config"]["evaluate_on"]
    held_out = results.get("data", {}).get("held_out", {}).get(split, "")
    return {
        "data set": results["config"].get("data", {}).get("name", ""),
        "metric": results["results"][0]["metric"],
        "reported split": split,
        "held-out data": held_out[:12],
    }


def along(
    axis: Axis, sources: Sequence[Source], measure: Measure, panel: str = ""
) -> tuple[list[Point], list[str]]:
    """The points of all rows that are on the axis, by series and x, and notes.

    Raises:
        UserError: no row is on it, no row has two places on it, or one has a place twice.
    """
    points: dict[tuple[str, int], Point] = {}
    notes = []
    for source, line in _each(sources):
        try:
            place = axis.place(source, line)
        except KeyError as error:
            raise _lacking(source, error) from None
        if place is None:
            continue
        new = point(source, line, measure, panel, place[0], axis.name, place[1])
        old = points.setdefault(place, new)
        if old is new:
            continue
        # Round 0 has nothing of what these runs differ in: they all have it.
        if place[1] != 0:
            raise UserError(
                f"{place[0]} with {axis.name} {place[1]} is in {old.workdir} and in "
                f"{new.workdir}: name one of them"
            )
        points[place], other = _fuller(old, new)
        notes += _same(points[place], other)
    reached = dict.fromkeys(series for series, x in points if x > 0)
    kept = [points[at] for name in reached for at in sorted(points) if at[0] == name]
    _check(axis, kept)
    return kept, notes


def _check(axis: Axis, points: Sequence[Point]) -> None:
    if not points:
        raise UserError(f"no row there depends on {axis.label}; make runs with {axis.wanted}")
    values = sorted({point.x for point in points if point.x is not None})
    series = [point.series for point in points]
    if max(series.count(name) for name in series) < 2:
        there = ", ".join(map(str, values))
        raise UserError(
            f"a line needs a row with two or more values of {axis.name}, there is only {there} "
            f"for each; make more runs with {axis.wanted}, and name all with --workdir"
        )


def plain(sources: Sequence[Source], measure: Measure, panel: str = "") -> tuple[list, list[str]]:
    """Plain fine-tuning where it does not depend on the axis: of the run with most cells of it,
    and a note if the others' is another."""
    found = [
        point(source, line, measure, panel, PLAIN, "", None)
        for source, line in _each(sources)
        if line.method == PLAIN
    ]
    found.sort(key=lambda point: -point.n)
    return found[:1], [note for other in found[1:] for note in _same(found[0], other)]


def _fuller(old: Point, new: Point) -> tuple[Point, Point]:
    """The one with more cells first, else the one that was found first."""
    return (new, old) if new.n > old.n else (old, new)


def _same(kept: Point, other: Point) -> list[str]:
    if kept.mean == other.mean:
        return []
    return [f"{kept.method} is that of {kept.workdir}; {other.workdir} has another"]


def _each(sources: Sequence[Source]) -> Iterator[tuple[Source, Line]]:
    for source in sources:
        for line in source.run.lines:
            if line.n:
                yield source, line


def point(
    source: Source, line: Line, measure: Measure, panel: str, series: str, axis: str, x: int | None
) -> Point:
    """A row measured.

    Raises:
        UserError: older results, which lack what is measured.
    """
    own = [entry for entry in source.run.results["results"] if entry["method"] == line.method]
    try:
        values = [measure.of(entry, line.split) for entry in own]
    except KeyError as error:
        raise _lacking(source, error) from None
    return Point(
        *(panel, series, axis, x),
        *(
            line.metric if measure is SCORE else measure.name,
            float(np.mean(values)),
            deviation(values),
            len(values),
        ),
        *(line.seeds, line.pretrain_seeds, str(source.workdir)),
        *(line.method, settings(line.method, line.varied)),
    )


def _lacking(source: Source, error: KeyError) -> UserError:
    return UserError(
        f"{source.workdir}: its results.json has no {error}; run its command again with this sdfp"
    )


def notes(axis: Axis, sources: Sequence[Source]) -> list[str]:
    """What a reader must know of the runs: unfinished, failed, other differences than the axis."""
    told = []
    for source in sources:
        if not source.run.results.get("complete", True):
            told.append(f"{source.workdir} has not been run to its end")
        failed = [f"{line.method} {line.failed}" for line in source.run.lines if line.failed]
        if failed:
            told.append(f"failed cells of {source.workdir}: {some(failed)}")
    configs = [dict(_flat(source.run.results["config"])) for source in sources]
    keys = dict.fromkeys(key for config in configs for key in config)
    keys = [
        key
        for key in keys
        if key != axis.key
        and not key.startswith(NOT_COMPARED)
        and any(config.get(key) != configs[0].get(key) for config in configs)
    ]
    other = made_with({str(source.workdir): source.run.results for source in sources})
    differing = "; ".join([*([some(keys)] if keys else []), *other])
    return [*told, *([f"the runs also differ in {differing}"] if differing else [])]


def _flat(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value
