"""The fine-tuning runs of a report: the curve of every seed, and the choice of settings."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from sdfp import table_notes
from sdfp.page import curves
from sdfp.page.stages import Stage
from sdfp.rendering import NAMES, NOTHING, Table


class Tuned(NamedTuple):
    """The fine-tuning runs of a row."""

    name: str
    facts: list[str]
    losses: Markup


def finetuned(stages: Sequence[Stage]) -> list[Tuned]:
    """A panel per row, all with one axis: what differs between rows is then to be seen."""
    rows: dict[str, list[Stage]] = {}
    for stage in stages:
        if stage.row and stage.lines:
            rows.setdefault(stage.row, []).append(stage)
    every = [line["loss"] for own in rows.values() for stage in own for line in stage.lines]
    shared = curves.limits(every)
    made = []
    for row, own in rows.items():
        facts = [f"seed {stage.seed}: {told}" for stage in own for told in stage.remarks]
        panel = Markup(curves.finetuning(row, own, shared))
        made.append(Tuned(row.removeprefix("finetune/"), facts, panel))
    return made


def candidates(results: Mapping[str, Any]) -> dict[str, Table]:
    """For each row whose settings were chosen: what was tried, with its scores."""
    return {method: _candidates(method, made) for method, made in results.get("tuning", {}).items()}


def _candidates(method: str, made: Mapping[str, Any]) -> Table:
    score = f"{made['split']} {NAMES.get(made['metric'], made['metric'])}"
    rows = [["settings", score, "each seed", ""]]
    for place, tried in enumerate(made["candidates"]):
        mean = NOTHING if tried["mean"] is None else f"{tried['mean']:.2f}"
        each = [NOTHING if value is None else f"{value:.2f}" for value in tried["values"]]
        errors = tried.get("errors") or ()
        said = "chosen" if place == made.get("chosen") else "".join(errors[:1])
        rows.append([table_notes.settings(method, tried["settings"]), mean, ", ".join(each), said])
    return Table(rows, [])
