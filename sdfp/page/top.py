"""The top of a report: what a reader wants to know first."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sdfp.comparison import PLAIN, Line, Run
from sdfp.page import facts, verdicts
from sdfp.page.masked import Masked
from sdfp.page.stages import Stage
from sdfp.page.verdicts import AHEAD, ALIKE, BEHIND, UNTESTED
from sdfp.rendering import NAMES

TITLES = {
    AHEAD: f"Ahead of {PLAIN}",
    BEHIND: f"Behind {PLAIN}",
    ALIKE: f"No difference to {PLAIN} shown",
    UNTESTED: f"Not tested against {PLAIN}",
}


class Answer(NamedTuple):
    """To a question that every reader has."""

    about: str
    anchor: str
    """Where more is told of it."""
    lines: list[str]


def summary(results: Mapping[str, Any]) -> list[str]:
    """What was run, in a few words."""
    if not results:
        return ["no results.json yet: the first row is still in training"]
    config, data = results["config"], results.get("data", {})
    held_out, counts = config.get("evaluate_on", "test"), data.get("counts", {})
    told = [f"data set {config.get('data', {}).get('name', 'unknown')}"]
    if "classes" in data:
        told.append(f"{data['classes']:,} classes")
    if counts:
        told.append(f"{counts.get('train', 0):,} training examples")
        told.append(f"{counts.get(held_out, 0):,} {held_out} examples")
    rows, seeds = len(config.get("methods", ())), len(config.get("seeds", ()))
    told.append(f"{_counted(rows, 'row')} × {_counted(seeds, 'seed')}")
    told.append("complete" if results.get("complete") else "not complete")
    failures = len(results.get("failed", ()))
    return [*told, _counted(failures, "failed cell") if failures else "no failed cells"]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def warnings(
    results: Mapping[str, Any], stages: Sequence[Stage], masked: Sequence[Masked]
) -> Iterator[tuple[str, str]]:
    """(text, anchor that it is about or "")."""
    for line in facts.failed(results):
        yield line, ""
    if not results.get("complete"):
        yield _unfinished(results, stages), "stages"
    for each in masked:
        if each.stage.warning:
            yield f"{each.stage.name}: {each.stage.warning}", each.anchor
    for stage in stages:
        if stage.skipped:
            yield f"{stage.name}: {_counted(stage.skipped, 'step')} skipped: not finite", "stages"
    for name in facts.sets(results):
        found = facts.data(results[name])
        yield from ((f"{name}: {remark}", "data") for remark in found.remarks)
        if found.broken:
            yield f"{name}: {_counted(len(found.broken), 'broken file')} left out", "data"


def _unfinished(results: Mapping[str, Any], stages: Sequence[Stage]) -> str:
    """What a run that has not come to its end still lacks."""
    config = results.get("config", {})
    told = ["The run has not come to its end: it goes on, or was stopped"]
    cells: dict[str, set] = {method: set() for method in config.get("methods", ())}
    for entry in results.get("results", ()):
        cell = (entry.get("pretrain_seed"), entry["seed"])
        cells.setdefault(entry["method"], set()).add(cell)
    lacking = []
    for method, own in cells.items():
        # What does not pre-train is not repeated; before its first cell a row does not tell.
        repeats = 1 if {seed for seed, _ in own} == {None} else results.get("pretrain_seeds", 1)
        wanted = repeats * len(config.get("seeds", ()))
        if len(own) < wanted:
            lacking.append(f"{method} ({len(own)} of {wanted})" if own else f"{method} (none)")
    if lacking:
        told.append(f"cells measured so far: {', '.join(lacking)}")
    making = [f"{s.name} (step {s.done:,} of {s.of})" for s in stages if not s.record]
    if making:
        told.append(f"unfinished stages: {', '.join(making)}")
    return "; ".join(told) + ". The same command goes on with it."


def answers(
    run: Run | None, masked: Sequence[Masked], starts: Sequence[facts.Start]
) -> Iterator[Answer]:
    """Best row, further pre-training, initial parameters: as far as anything is known."""
    if run and (best := verdicts.best(run.lines)):
        yield Answer("Best row", "table", list(_best(best, run.lines)))
    probed = [f"{each.stage.name}: {'; '.join(each.probed)}" for each in masked if each.probed]
    if probed:
        yield Answer("Masked stages, by the probe", "masked", probed)
    for start in starts:
        yield Answer(start.title, "start", start.lines)


def _best(best: Line, lines: Sequence[Line]) -> Iterator[str]:
    spread = "" if best.std is None else f" ± {best.std:.2f}"
    yield (
        f"{best.method}: {best.split} {NAMES.get(best.metric, 'score')} {best.mean:.2f}{spread} "
        f"over {_counted(best.n, 'run')}{_against(best, lines)}"
    )
    for kind, title in TITLES.items():
        own = [line for line in lines if verdicts.verdict(line) == kind]
        if own:
            rows = ", ".join(f"{line.method} {verdicts.difference(line)}" for line in own)
            yield f"{title}: {rows}"


def _against(best: Line, lines: Sequence[Line]) -> str:
    if best.method == PLAIN:
        return f"; no row is above plain {PLAIN}" if len(lines) > 1 else ""
    if best.difference is None:
        return f"; there is no row {PLAIN} to compare it with"
    told = f"; against {PLAIN} {verdicts.difference(best)}: {verdicts.verdict(best)}"
    others = sum(line.p_value is not None for line in lines)
    if verdicts.verdict(best) == AHEAD and others > 1:
        return f"{told}, but it is the best of {others} comparisons"
    return told
