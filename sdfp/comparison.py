"""Work directories compared: each row's mean, spread, difference to plain fine-tuning and cost.

`open_runs` reads the results.json of each; `sdfp.rendering` makes tables of what it returns.
All scores and their differences are in percent (points), times in seconds.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr  # scipy.stats would take a second longer to import

from sdfp import checked
from sdfp.types import UserError

PLAIN = "finetune"
"""The row that the others are compared with."""

ALSO = ("accuracy", "macro_f1", "micro_f1", "loss", "train_loss", "distance")
"""What is averaged besides the headline metric; `loss` is that of the reported split."""

SAME = 1e-9
"""Percent points: differences closer than this are equal but for rounding."""


class Line(NamedTuple):
    """One method on one data set."""

    method: str
    varied: Mapping[str, Any]
    """The settings that were given or chosen for it; empty where it has the config's own."""
    metric: str
    """accuracy, micro_f1 or macro_f1; "" where nothing at all could be measured."""
    split: str
    """test or validation."""
    values: tuple[float, ...]
    """One score per cell, i.e. per pre-training and fine-tuning seed."""
    mean: float | None
    std: float | None
    """Of the sample (n - 1); None for fewer than two values."""
    n: int
    pretrains: bool
    """Whether it has pre-training of its own, and with it that one's variance."""
    pretrain_seeds: int
    """How many; 1 for a row that has no pre-training of its own."""
    seeds: int
    """How many fine-tuning seeds."""
    precision: str
    """Of its fine-tuning; "" where results.json does not tell (older ones)."""
    difference: float | None
    """To plain fine-tuning, over the fine-tuning seeds that both rows have, this one with all of
    its pre-training seeds."""
    common: int
    """How many such fine-tuning seeds there are."""
    test: str
    """What the p-value is of: `paired` or `welch`; "" where there is none."""
    p_value: float | None
    steps: float | None
    """Of one run: all stages that a cell needs from theta_init on, shared ones included.
    Averaged over the cells; None where results.json does not tell (older ones)."""
    seconds: float | None
    failed: int
    """Cells without a score."""
    means: dict[str, float]
    """`ALSO`, as far as results.json has them."""

    @property
    def pairs(self) -> int:
        """How many the paired test has; 0 where it is not the one."""
        return self.common if self.test == "paired" else 0


class Run(NamedTuple):
    """One work directory."""

    label: str
    """config.name, made unique among the runs that are compared."""
    results: Mapping[str, Any]
    lines: list[Line]


def open_runs(workdirs: Sequence[Path]) -> list[Run]:
    """The runs to compare, in the order given.

    Raises:
        UserError: none are named, one of them twice, or one has no results.
    """
    folders = [Path(workdir).resolve() for workdir in workdirs]
    if not folders:
        raise UserError("no work directory named: name one or several")
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"{folder} is named twice: name each work directory once")
    found = [read(folder) for folder in folders]
    names = _labels([results["config"]["name"] for results in found], folders)
    return [Run(name, results, lines(results)) for name, results in zip(names, found, strict=True)]


def _labels(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """The names; those that are equal with the folder's name, or with its whole path."""
    short = [f"{name} ({folder.name})" for name, folder in zip(names, folders, strict=True)]
    whole = [f"{name} ({folder})" for name, folder in zip(names, folders, strict=True)]
    return [
        next(forms[i] for forms in (names, short, whole) if forms.count(forms[i]) == 1)
        for i in range(len(names))
    ]


def read(workdir: Path) -> dict[str, Any]:
    """The results.json of a work directory.

    Raises:
        UserError: none there, damaged, not that of a run, or without any result.
    """
    path = Path(workdir) / "results.json"
    if not path.is_file():
        raise UserError(f"{workdir}: no results.json there; name the work directory of a run")
    results = checked.read_results(path)
    if not results.get("results") and not results.get("failed"):
        raise UserError(f"{path}: no results in it; run sdfp.main on data with labels first")
    return results


def lines(results: Mapping[str, Any]) -> list[Line]:
    """One line per method, in the order of config.methods; also of those without any score."""
    config, entries = results["config"], results.get("results", [])
    cells: dict[str, list] = {method: [] for method in config["methods"]}
    for entry in entries:
        cells.setdefault(entry["method"], []).append(entry)
    failed = _failed(results)
    metric = entries[0]["metric"] if entries else ""
    records = {record["name"]: record for record in results.get("stages", ())}
    found = []
    for method in dict.fromkeys([*cells, *failed]):
        own = cells.get(method, [])
        pretrain_seeds = {entry.get("pretrain_seed") for entry in own}
        difference, common, test, p_value = compared(
            own, [] if method == PLAIN else cells.get(PLAIN, [])
        )
        line = Line(
            method=method,
            varied=own[0].get("varied", {}) if own else {},
            metric=metric,
            split=config["evaluate_on"],
            values=tuple(entry["value"] for entry in own),
            mean=_mean([entry["value"] for entry in own]),
            std=deviation([entry["value"] for entry in own]),
            n=len(own),
            pretrains=bool(pretrain_seeds - {None}),
            pretrain_seeds=len(pretrain_seeds),
            seeds=len({entry["seed"] for entry in own}),
            precision=own[0].get("precision", "") if own else "",
            difference=difference,
            common=common,
            test=test,
            p_value=p_value,
            steps=_cost(own, records, "steps"),
            seconds=_cost(own, records, "seconds"),
            failed=len(failed.get(method, ())),
            means=_means(own, config["evaluate_on"]),
        )
        found.append(line)
    return found


def failures(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What failed of the rows, without what did of candidates that others were chosen over."""
    varied = {entry["method"]: entry.get("varied", {}) for entry in results.get("results", ())}
    return [
        failure
        for failure in results.get("failed", ())
        if failure.get("varied") in (None, varied.get(failure["method"], failure.get("varied")))
    ]


def _failed(results: Mapping[str, Any]) -> dict[str, set[tuple]]:
    """For each method that failed its cells, (pre-training seed, fine-tuning seed): each once,
    and all seeds where none is named."""
    seeds = results["config"].get("seeds") or (None,)
    cells: dict[str, set[tuple]] = {}
    for failure in failures(results):
        own = seeds if failure["seed"] is None else (failure["seed"],)
        cells.setdefault(failure["method"], set()).update(
            (failure.get("pretrain_seed"), seed) for seed in own
        )
    return cells


def _mean_by(key: str, entries: Sequence[Mapping[str, Any]]) -> dict[Any, float]:
    """For each `seed` its mean score over the pre-training seeds, or the other way round."""
    scores: dict[Any, list[float]] = {}
    for entry in entries:
        scores.setdefault(entry.get(key), []).append(entry["value"])
    return {seed: float(np.mean(values)) for seed, values in scores.items()}


def compared(
    row: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]]
) -> tuple[float | None, int, str, float | None]:
    """`difference`, `common`, `test` and `p_value` of a row's line.

    All of them are over the same cells: those of the fine-tuning seeds that plain fine-tuning and
    every pre-training seed of the row have.

    Several pre-training seeds are there for the variance of pre-training. Pairs of fine-tuning
    seeds, averaged over them, would all hold the same few pre-trainings, and their differences
    nothing of that variance: so the means of the pre-training seeds are tested, unpaired.
    """
    seeds: dict[Any, set] = {}
    for entry in row:
        seeds.setdefault(entry.get("pretrain_seed"), set()).add(entry["seed"])
    both = {entry["seed"] for entry in plain}.intersection(*seeds.values())
    row, plain = ([entry for entry in own if entry["seed"] in both] for own in (row, plain))
    by_pretraining, of_plain = _mean_by("pretrain_seed", row), _mean_by("seed", plain)
    difference, p_value, common = paired(_mean_by("seed", row), of_plain)
    test = "paired"
    if len(by_pretraining) > 1:
        test, p_value = "welch", welch([*by_pretraining.values()], [*of_plain.values()])
    return difference, common, "" if p_value is None else test, p_value


def paired(
    row: Mapping[int, float], plain: Mapping[int, float]
) -> tuple[float | None, float | None, int]:
    """Two rows compared over the fine-tuning seeds that both have.

    Args:
        row, plain: fine-tuning seed -> score.

    Returns:
        The mean difference row - plain, the p-value of the paired two-sided t-test, and the
        number of pairs. The p-value is None with fewer than two pairs and where all
        differences are the same (t would be infinite), but 1 where all are 0.
    """
    differences = np.array([row[seed] - plain[seed] for seed in row if seed in plain], np.float64)
    n = len(differences)
    if n == 0 or not np.isfinite(differences).all():
        return None, None, n
    mean = float(differences.mean())
    if n < 2:
        return mean, None, n
    if np.ptp(differences) <= SAME:
        return mean, 1.0 if np.abs(differences).max() <= SAME else None, n
    t = mean / (differences.std(ddof=1) / math.sqrt(n))
    return mean, float(2 * stdtr(n - 1, -abs(t))), n


def welch(row: Sequence[float], plain: Sequence[float]) -> float | None:
    """The p-value of Welch's two-sided t-test of independent values.

    Returns:
        None with fewer than two values on a side, and where the values of each side are the
        same (t would be infinite), but 1 where those of both are.
    """
    a, b = np.array(row, np.float64), np.array(plain, np.float64)
    if min(len(a), len(b)) < 2 or not np.isfinite([*a, *b]).all():
        return None
    difference = abs(float(a.mean() - b.mean()))
    if max(np.ptp(a), np.ptp(b)) <= SAME:
        return 1.0 if difference <= SAME else None
    u, v = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    return float(2 * stdtr(freedom, -difference / math.sqrt(u + v)))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample (n - 1); None for fewer than two values."""
    finite = np.isfinite(values).all()  # numpy warns about the deviation of an infinite value
    return float(np.std(values, ddof=1)) if len(values) > 1 and finite else None


def _cost(entries: Sequence[Mapping], records: Mapping[str, Mapping], what: str) -> float | None:
    """Steps or seconds of one cell, averaged over cells; None where those of a stage are not
    known."""
    known = {name: record[what] for name, record in records.items() if what in record}
    costs = []
    for entry in entries:
        stages = set(entry.get("stages", ()))  # a stage counts once, however often it was asked for
        if not stages or not stages <= known.keys():
            return None
        costs.append(sum(known[stage] for stage in stages))
    return _mean(costs)


def _means(entries: Sequence[Mapping[str, Any]], split: str) -> dict[str, float]:
    keys = {name: f"{split}_loss" if name == "loss" else name for name in ALSO}
    return {
        name: float(np.mean([entry[key] for entry in entries]))
        for name, key in keys.items()
        if entries and all(key in entry for entry in entries)
    }
