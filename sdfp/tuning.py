"""The choice among a row's candidates, by the validation part."""

import functools
from typing import Any

import numpy as np

from sdfp import cells, report
from sdfp.results import Results
from sdfp.rows import Row
from sdfp.types import Params


def choose(results: Results, candidates: list[Row], init_params: Params) -> Row | None:
    """The candidate with the highest mean over the seeds on the validation part, of several the
    config's own, else the first. The reported split is not looked at. A candidate that fails is
    out; if all do, the row has failed."""
    metric = results.context.target.data.metric
    told, failed = [], []
    for row in candidates:
        failures: list[dict[str, Any]] = []
        values = _scores(results, row, init_params, failures)
        scores = [value for value in values if value is not None]
        mean = float(np.mean(scores)) if len(scores) == len(values) else None
        told.append({"settings": _values(row, candidates), "values": values, "mean": mean})
        told[-1]["errors"] = [failure["error"] for failure in failures]
        shown = "failed" if mean is None else f"validation {metric} {mean:.2f}"
        report.say(f"{row.name} {told[-1]['settings']}: {shown}")
        failed += failures
    means = [one["mean"] for one in told]
    whole = [mean for mean in means if mean is not None]
    best = [i for i, mean in enumerate(means) if whole and mean == max(whole)]
    chosen = min(best, key=lambda i: bool(candidates[i].varied), default=None)
    results.tuning[candidates[0].name] = {
        "split": "validation",
        "metric": metric,
        "candidates": told,
        "chosen": chosen,
    }
    if chosen is None:
        first = next((failure for failure in failed if failure["ours"]), failed[0])
        error = f"all candidates failed, one of them: {first['error']}"
        results.failed.append({**first, "varied": {}, "seed": None, "error": error})
        return None
    # A candidate's own mistake is in its errors; one of ours must not pass unseen.
    results.failed += [failure for failure in failed if failure["ours"]]
    return candidates[chosen]


def _scores(results: Results, row: Row, init_params: Params, failed: list) -> list[float | None]:
    """The validation part's score for each seed, None where that failed."""
    context = results.context
    attempt = functools.partial(results.attempt, row, failed=failed)
    start = attempt(None, lambda: cells.pretrained(context, row, init_params))
    if start is None:
        return [None]

    def score(seed: int) -> float:
        outcome, _ = cells.finetuned(context, row, seed, start)
        metrics = cells.measured(context, row, outcome, "validation")
        return metrics[context.target.data.metric]

    return [attempt(seed, functools.partial(score, seed)) for seed in row.settings.seeds]


def _values(row: Row, candidates: list[Row]) -> dict[str, Any]:
    """A candidate's values of everything that is varied among the candidates."""
    keys = {key: None for candidate in candidates for key in candidate.varied}
    value = lambda part, key: getattr(row.settings.method[part], key)
    return {full: value(*full.split(".")) for full in keys}
