"""What a run would train, and what of it a work directory has, by name: nothing is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfp import checkpoint
from sdfp.train import kept
from sdfp.types import WorkdirError


def lines(plan: Mapping[str, Mapping[str, Any]], workdir: Path) -> list[str]:
    """A line per stage: its name, its steps, its state; and how many are there.

    Args:
        plan: as `rows.plan` makes it.
    """
    states = {name: state(workdir / "stages" / name, known) for name, known in plan.items()}
    steps = {name: known["recipe"]["steps"] for name, known in plan.items()}
    width = max(map(len, plan))
    told = [f"{name:{width}}  {steps[name]:6} steps  {states[name]}" for name in plan]
    there = [name for name in plan if states[name] == THERE]
    left = sum(steps.values()) - sum(steps[name] for name in there)
    return [*told, f"{len(there)} of {len(plan)} stages there; {left} steps to do at most"]


THERE = "there"


def state(directory: Path, known: Mapping[str, Any]) -> str:
    """One of "there", "to do", "interrupted after step N", and "refused": of other settings.

    Args:
        known: the part of the stage's identity that is known.
    """
    try:
        kept.check_known(directory, known)
    except WorkdirError as error:
        return f"refused: {error}"
    if checkpoint.exists(directory / "final"):
        return THERE
    step = checkpoint.last_step(directory)
    return "to do" if step is None else f"interrupted after step {step}"
