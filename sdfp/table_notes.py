"""The notes below a table: what its figures are, what they do not say, what is missing."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sdfp.comparison import PLAIN, Line, Run, failures
from sdfp.types import some

ONE_CHECKPOINT = "the fine-tuning seeds of one pre-trained checkpoint per"
NOT_IN_SPREAD = "the variance of the pre-training stages is not in it"


def of_one(run: Run) -> list[str]:
    """The notes of a table of one run, with a column for each figure."""
    return [
        *_on_spread([run]),
        *_on_difference(run.lines),
        *_on_test([run], "p"),
        *_on_cost(run),
        *_on_all([run]),
    ]


def of_several(runs: Sequence[Run], marked: str) -> list[str]:
    """The notes of a table with a column for each run; `marked` is what a mark in it means."""
    return [
        *_on_n(runs),
        *_on_spread(runs),
        *_on_test(runs, marked),
        *_on_machines(runs),
        *_on_all(runs),
    ]


def each(runs: Sequence[Run]) -> Iterator[tuple[Run, Line, str]]:
    """Every line, and its name in the notes: with the data set where there are several."""
    for run in runs:
        for line in run.lines:
            yield run, line, line.method + (f" on {run.label}" if len(runs) > 1 else "")


def settings(method: str, varied: Mapping[str, Any]) -> str:
    """E.g. "k=0.1, t0=250"; joined methods need their names with it."""
    keep = "+" in method
    pairs = [(k if keep else k.rsplit(".", 1)[-1], v) for k, v in varied.items()]
    return ", ".join(f"{key}={value}" for key, value in pairs)


def _range(numbers: Iterable[int]) -> str:
    """5, or 3 to 5 where they differ."""
    found = sorted(set(numbers)) or [0]
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _on_n(runs: Sequence[Run]) -> Iterator[str]:
    """How many values each column's means are of."""
    told = [f"{_range(x.n for x in r.lines if x.n)} on the {r.lines[0].split} split" for r in runs]
    if len(set(told)) == 1:
        told = [f"{told[0]} in every column"]
    else:
        told = [f"{text} of {run.label}" for text, run in zip(told, runs, strict=True)]
    yield f"n = {'; '.join(told)}."


def _on_spread(runs: Sequence[Run]) -> Iterator[str]:
    """Which seeds the ± is over."""
    spread = [(line, name) for _, line, name in each(runs) if line.std is not None]
    several = [(line, name) for line, name in spread if line.pretrain_seeds > 1]
    one = f"{ONE_CHECKPOINT} row"
    if not spread:
        yield "No spread: one value per row."
    elif not several:
        yield f"±: sample standard deviation over {one}, as in the paper; {NOT_IN_SPREAD}."
    else:
        words = "{} over {} pre-training × {} fine-tuning seeds"
        told = [words.format(name, x.pretrain_seeds, x.seeds) for x, name in several]
        rest = [f"other rows over {one}"] if len(several) < len(spread) else []
        yield f"±: sample standard deviation; {'; '.join(told + rest)}."


def _on_difference(lines: Sequence[Line]) -> Iterator[str]:
    """What Δ is in a table of one run."""
    compared = [line for line in lines if line.difference is not None]
    if not compared:
        yield f"No Δ and no p: there is no row to compare with {PLAIN} seed by seed."
    else:
        averaged = any(line.pretrain_seeds > 1 for line in compared)
        first = ", with all of their pre-training seeds and averaged over them" if averaged else ""
        common = _range(line.common for line in compared)
        yield f"Δ: mean over the fine-tuning seeds that both rows have ({common}){first}."


def _on_test(runs: Sequence[Run], subject: str) -> Iterator[str]:
    """What the p-values, or the marks that are made of them, say and do not say."""
    pairs = [(line, name) for _, line, name in each(runs) if line.test == "paired"]
    welch = [(line, name) for _, line, name in each(runs) if line.test == "welch"]
    how = []
    if pairs:
        how.append(
            f"paired by fine-tuning seed, with n = {_range(line.pairs for line, _ in pairs)} pairs"
        )
    if welch:
        how.append(
            f"for {', '.join(name for _, name in welch)} Welch's, unpaired, of the mean of each "
            f"pre-training seed (n = {_range(line.pretrain_seeds for line, _ in welch)}) and of "
            f"{PLAIN}'s values (n = {_range(line.common for line, _ in welch)}), of the "
            "fine-tuning seeds that all of these have"
        )
    once = any(line.pretrains for line, _ in pairs)
    hidden = " A paired test leaves out the variance of the pre-training stages." if once else ""
    if how:
        yield (
            f"{subject}: two-sided t-test against {PLAIN}, {'; '.join(how)}; it is weak evidence, "
            f"and not corrected for the number of comparisons ({len(pairs) + len(welch)}).{hidden}"
        )


def _on_cost(run: Run) -> Iterator[str]:
    """What steps and time are."""
    if any(line.steps is not None for line in run.lines):
        device = run.results.get("device", "an unknown device")
        search = ", without the search for settings" if run.results.get("tuning") else ""
        yield (
            f"steps, time: of one run from theta_init on{search}; a stage that rows share is "
            "counted in each of them. Time as measured, compilation included, probes and "
            f"evaluation not, on {device}."
        )


def made_with(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Precision, kind of device and versions, as far as they differ, each with whose it is.

    Args:
        runs: name -> results.json. What an older one does not tell is left out.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name, results in runs.items():
        device = results.get("device", "").split(" x ", 1)[-1]  # "8 x H200": how many is no matter
        told = {"precision": results.get("precision"), "device": device}
        for what, value in {**told, **results.get("versions", {})}.items():
            if value:
                found.setdefault(what, {}).setdefault(str(value), []).append(name)
    each = lambda values: ", ".join(f"{value} ({some(own)})" for value, own in values.items())
    return [f"{what}: {each(values)}" for what, values in found.items() if len(values) > 1]


def _on_machines(runs: Sequence[Run]) -> Iterator[str]:
    """What columns were made with, where that differs between them."""
    if told := made_with({run.label: run.results for run in runs}):
        yield f"The columns differ in {'; '.join(told)}."


def _on_all(runs: Sequence[Run]) -> Iterator[str]:
    """What tables of one and of several runs both tell in the end."""
    yield from _on_precision(runs)
    yield from _on_settings(runs)
    yield from _on_candidates(runs)
    yield from _on_gaps(runs)


def _on_precision(runs: Sequence[Run]) -> Iterator[str]:
    """Which rows were fine-tuned in another precision than their run's."""
    for run in runs:
        usual, where = run.results.get("precision"), f" on {run.label}" if len(runs) > 1 else ""
        others: dict[str, list[str]] = {}
        for line in run.lines:
            if usual and line.precision not in ("", usual):
                others.setdefault(line.precision, []).append(line.method)
        same = any(line.precision == usual for line in run.lines)
        rest = f"the other rows{where}" if same else "not"
        told = [f"{', '.join(names)}{where}: fine-tuned in {p}" for p, names in others.items()]
        if told:
            yield f"{'; '.join(told)}, {rest} in {usual}."


def _on_settings(runs: Sequence[Run]) -> Iterator[str]:
    """What was chosen, on what and from how many candidates; and what was simply given."""
    chosen, given, optimistic, own = [], [], [], "the config's own"
    for run, line, name in each(runs):
        tuning, told = _tuning(run, line), settings(line.method, line.varied)
        if tuning and line.n:
            count = f"{tuning['split']} split, {len(tuning['candidates'])} candidates"
            chosen.append(f"{name}: {told or own} ({count})")
            if tuning["split"] == line.split:
                optimistic.append(name)
        elif line.varied:
            given.append(f"{name}: {told}")
    if chosen:
        yield f"Settings chosen for {'; '.join(chosen)}."
    if given:
        yield f"Settings given for {'; '.join(given)}."
    if optimistic:
        yield (
            f"Optimistic: the score of {', '.join(optimistic)} is the one that its settings were "
            "chosen by."
        )


def _on_candidates(runs: Sequence[Run]) -> Iterator[str]:
    """Which candidates failed, each with its first error."""
    for run, line, name in each(runs):
        candidates = _tuning(run, line).get("candidates", ())
        out = [candidate for candidate in candidates if candidate.get("errors")]
        told = [f"{settings(line.method, x['settings'])}: {x['errors'][0]}" for x in out]
        if out:
            yield (
                f"{name}: {len(out)} of {len(candidates)} candidates failed and "
                f"{'was' if len(out) == 1 else 'were'} out: {'; '.join(told)}"
            )


def _tuning(run: Run, line: Line) -> Mapping[str, Any]:
    """How a row's settings were chosen; empty where there was no choice."""
    return run.results.get("tuning", {}).get(line.method, {})


def _on_gaps(runs: Sequence[Run]) -> Iterator[str]:
    """What failed, and what has not been run yet."""
    for run in runs:
        where = f"{run.label}, " if len(runs) > 1 else ""
        for failure in failures(run.results):
            seeds = {"pre-training seed": failure.get("pretrain_seed"), "seed": failure["seed"]}
            told = [f", {name} {seed}" for name, seed in seeds.items() if seed is not None]
            yield f"Failed: {where}{failure['method']}{''.join(told)}: {failure['error']}"
        if run.results.get("complete") is False:
            yield f"{run.label} has not been run to its end: more cells may follow."
