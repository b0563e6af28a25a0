"""Steps that were skipped, as `step.train_step` does where something is not finite: they are
counted, told, and limited."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sdfp import report
from sdfp.types import UserError

WATCHED = ("loss", "grad_norm")


class Skips(NamedTuple):
    """Of a stage so far; its checkpoints keep it."""

    count: int = 0
    last: Mapping[str, float] | None = None
    """The last step that was not skipped: {"step", "loss", "grad_norm"}."""


def noted(
    known: Skips, name: str, done: int, metrics: Mapping[str, np.ndarray], *, most: int, steps: int
) -> Skips:
    """`known` and what a call adds to it. A step that was skipped is told.

    Args:
        name: of the stage.
        done: steps of the stage behind the call.
        metrics: {name: [steps of the call]}.
        most: steps of the stage that may be skipped.
        steps: that the stage has. The last one must not be skipped: nothing would show that the
            parameters are still good for anything.

    Raises:
        UserError: more were, or that one was.
    """
    first = done - len(metrics["skipped"]) + 1
    for i, skipped in enumerate(metrics["skipped"]):
        step, values = first + i, {key: float(metrics[key][i]) for key in WATCHED}
        if not skipped:
            known = known._replace(last={"step": step, **values})
            continue
        known = known._replace(count=known.count + 1)
        wrong = next(key for key in WATCHED if not math.isfinite(values[key]))
        told = f"{name}: {wrong} is not finite at step {step}"
        if known.count > most or step == steps:
            raise UserError(f"{told}. {_advice(known, most)}")
        report.say(f"warning: {told}, which is skipped: {known.count} so far, {most} may be")
    return known


def _advice(known: Skips, most: int) -> str:
    """What to do, and what is known."""
    last = "none before was finite"
    if known.last:
        last = "the last finite one was step {step}, loss {loss:.4g}, grad_norm {grad_norm:.4g}"
        last = last.format(**known.last)
    return (
        "Try a lower learning rate or float32, and look at the inputs; the last checkpoint is "
        f"kept. Steps so far that were not finite: {known.count} (config.run.max_skipped={most}, "
        f"and never a stage's last); {last}"
    )
