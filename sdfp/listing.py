"""What a run would train, and what of it a work directory has, by name: nothing is loaded."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdfp import checkpoint, rows
from sdfp.rows import Row
from sdfp.settings import Experiment, Recipe


def stages(
    settings: Experiment, grid: Mapping[str, Sequence], pretrain_seeds: int
) -> dict[str, Recipe]:
    """Every stage of a run, in its order, each once. Of a row whose settings are chosen there are
    all candidates; which of them is repeated with other pre-training seeds is not known yet."""
    found = {"pretrain": settings.stages.pretrain} if settings.init.kind == "pretrain" else {}
    for candidates in rows.expand(settings, grid):
        for row in candidates:
            for again in _repeats(row, pretrain_seeds if len(candidates) == 1 else 1):
                found |= rows.planned(again, settings.seeds)
    return found


def _repeats(row: Row, times: int) -> list[Row]:
    first = row.settings.seed
    return [row.repeated(first + i) for i in range(times if row.pretrains else 1)]


def lines(stages: Mapping[str, Recipe], workdir: Path) -> list[str]:
    """A line per stage: its name, its steps, its state; and how many are there."""
    states = {name: state(workdir / "stages" / name, recipe) for name, recipe in stages.items()}
    width = max(map(len, stages))
    told = [
        f"{name:{width}}  {recipe.steps:6} steps  {states[name]}" for name, recipe in stages.items()
    ]
    there = sum(value == "there" for value in states.values())
    steps = sum(recipe.steps for name, recipe in stages.items() if states[name] != "there")
    return [*told, f"{there} of {len(stages)} stages there; {steps} steps to do at most"]


def state(directory: Path, recipe: Recipe) -> str:
    """One of "there", "to do", "interrupted after step N", and what speaks against it."""
    changed = _changed(directory / "identity.json", recipe)
    if changed:
        return f"made with another recipe ({', '.join(changed)}): would be refused"
    if checkpoint.exists(directory / "final"):
        return "there"
    step = checkpoint.last_step(directory)
    return "to do" if step is None else f"interrupted after step {step}"


def _changed(path: Path, recipe: Recipe) -> list[str]:
    """The keys in which a stage that is there differs from the recipe."""
    if not path.exists():
        return []
    known: dict[str, Any] = json.loads(path.read_text())
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return [key for key, value in wanted.items() if known.get(f"recipe.{key}") != value]
