"""The masked stages of a report: curves, what the probe says of them, reconstructions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from sdfp.page import curves, pictures
from sdfp.page.stages import Stage
from sdfp.train import probe


class Masked(NamedTuple):
    """A masked stage, ready to be shown."""

    stage: Stage
    anchor: str
    facts: list[str]
    probed: list[str]
    """What the probe says, a sentence each."""
    losses: Markup | None
    probes: Markup | None
    picture: pictures.Picture | None
    text: str | None


def masked(stages: Sequence[Stage], withheld: bool) -> list[Masked]:
    """Those of a run's stages that are masked ones.

    Args:
        withheld: whether the page is to hold no example of the data.
    """
    own = [stage for stage in stages if stage.row is None]
    return [_masked(stage, f"masked-{i + 1}", withheld) for i, stage in enumerate(own)]


def _masked(stage: Stage, anchor: str, withheld: bool) -> Masked:
    text = stage.directory / "reconstructions.txt"
    has_text = text.is_file() and not withheld
    picture = pictures.embed(stage.directory / "reconstructions.png")
    return Masked(
        stage=stage,
        anchor=anchor,
        facts=stage.progress,
        probed=list(_probed(stage.probes)),
        losses=Markup(curves.losses(stage)) if stage.lines else None,
        probes=Markup(curves.probes(stage)) if stage.probes else None,
        picture=None if withheld else picture,
        text=text.read_text(encoding="utf-8", errors="replace") if has_text else None,
    )


def _probed(probes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For each of the probe's classifiers, what the stage has made of its accuracy so far."""
    for name, told in probe.NAMES.items():
        own = [line for line in probes if name in line]
        if len(own) > 1:
            yield f"{told} {_change(own, name)}"


def _change(lines: Sequence[Mapping[str, Any]], name: str) -> str:
    start, end, best = lines[0], lines[-1], max(lines, key=lambda line: line[name])
    told = f"{start[name]:.1f} → {end[name]:.1f} %"
    if best[name] > max(start[name], end[name]):
        told += f" (best {best[name]:.1f} % at step {best['step']:,})"
    error = probe.difference_error(start, end, name)
    if math.isnan(error):
        return told
    change = end[name] - start[name]
    if abs(change) <= probe.ERRORS * error:
        return f"{told}, no change shown"
    return f"{told}, {'better' if change > 0 else 'worse'} than before"
