"""The whole program: config -> data, backbone, rows -> results.

config --parse--> settings --+--> data set, source data set
                             +--> backbone, theta_init (weights | scratch | pretrain stage)
for each row:      rows.py: the methods of its name, and candidates where settings are chosen
    cells.py:      pre-training, and for each seed fine-tuning and evaluation
                   (stages.py: how each is trained, or read, if it is there)
                                                                --> results.json
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdfp import (
    cells,
    config,
    hosts,
    initial,
    lock,
    parallel,
    preflight,
    programs,
    report,
    rows,
    signals,
    stages,
    tuning,
)
from sdfp.methods.registry import METHODS
from sdfp.models.registry import BACKBONES
from sdfp.preparation import Prepared, prepare
from sdfp.problems import Problems
from sdfp.results import Results, earlier
from sdfp.rows import Row
from sdfp.settings import Experiment
from sdfp.types import Params, UserError


class Wish(NamedTuple):
    """What a table can ask for beyond its config."""

    grid: Mapping[str, Sequence] = {}
    """"method.key" -> values, of which the one is taken that is best on the validation part."""
    pretrain_seeds: int = 1
    """How often the pre-training stages are repeated: with config.seed, config.seed + 1, ..."""


CONFIG_ONLY = Wish()
CHECK = "load and check all that can be before training, tell every problem, and train nothing"


def parse(raw: Mapping[str, Any]) -> Experiment:
    """A checked config. Raises UserError."""
    return config.parse(
        raw,
        {name: family.settings for name, family in BACKBONES.items()},
        {name: method.settings for name, method in METHODS.items()},
    )


def plan(raw: Mapping[str, Any], wish: Wish) -> dict[str, dict[str, Any]]:
    """Every stage that `run` would train or read; see `rows.plan`. Raises UserError."""
    settings = parse(raw)
    return rows.plan(settings, rows.expand(settings, wish.grid), wish.pretrain_seeds)


def check(raw: Mapping[str, Any], workdir: Path, wish: Wish = CONFIG_ONLY) -> None:
    """Everything that `run` does before it trains; nothing is kept. Raises UserError as `run`."""
    with _prepared(parse(raw), workdir, wish, lock.held_behind) as (prepared, _):
        for line in prepared.start.told:
            report.say(line)
    report.say("check: no problem found; nothing was trained")


def run(raw: Mapping[str, Any], workdir: Path, wish: Wish = CONFIG_ONLY) -> dict[str, Any]:
    """Runs everything that a config asks for, or what a work directory still lacks of it.

    A cell that fails (its loss is not finite, no memory for it, its teacher cannot be read) is
    reported, and the others go on: see `refuse_failed`.

    Args:
        raw: a ConfigDict with the keys of configs/common.py.
        workdir: receives results.json, stages/, tensorboard/.
        wish: what to do beyond the config.

    Returns:
        What is written to results.json.

    Raises:
        UserError: mistakes of the user's, told in a line each.
        signals.Interrupted: a signal came; what is done is saved.
    """
    settings = parse(raw)
    with _prepared(settings, workdir, wish, lock.held) as (prepared, groups):
        context, start, source = prepared
        input = context.target.data.input
        init = initial.kept(start, settings, context.place, input)
        del start, prepared  # the source's data, and the weights as they were read
        before = hosts.decide(lambda: earlier(workdir))
        results = Results(context, init.record, wish.pretrain_seeds, earlier=before)
        if not results.earlier:  # what is run can be seen from the start
            results.write(complete=False)
        plain = Row("finetune", settings)
        init_params = stages.initial_params(context, plain, init.params, source)
        del source
        for candidates in groups:
            _run_row(results, candidates, init_params, wish.pretrain_seeds)
        return results.write(complete=True)


@contextlib.contextmanager
def _prepared(
    settings: Experiment, workdir: Path, wish: Wish, held: Callable
) -> Iterator[tuple[Prepared, list[list[Row]]]]:
    """A run that can begin, and its rows; within, the work directory is this run's alone.

    Args:
        held: `lock.held`, or another function of that module.
    """
    groups = rows.expand(settings, wish.grid)
    found, precision = Problems(), parallel.precision("float32")
    with found.noted():
        precision = parallel.precision(settings.precision)
        preflight.check_precision(settings.model, precision)
    with found.noted():
        programs.keep(settings.run.compilation_cache)
    with held(workdir), signals.handled(), precision.context():
        yield prepare(found, settings, groups, workdir, precision, wish.pretrain_seeds), groups


def refuse_failed(results: Mapping[str, Any]) -> None:
    """Raises UserError if cells failed, and RuntimeError if that was not the user's mistake."""
    failed = results["failed"]
    if failed:
        first = failed[0]
        seed = "" if first["seed"] is None else f", seed {first['seed']}"
        cell = first["method"] + seed
        line = f"{len(failed)} failed, the others are in the results; {cell}: {first['error']}"
        raise (RuntimeError if any(cell["ours"] for cell in failed) else UserError)(line)


def _run_row(results: Results, candidates: list[Row], init_params: Params, repeats: int) -> None:
    """Every cell of a row, after its settings were chosen where there is a choice."""
    row = candidates[0] if len(candidates) == 1 else tuning.choose(results, candidates, init_params)
    if row is None:
        return
    if row.method.float32 and results.context.precision.name != "float32":
        report.say(f"{row.name}: fine-tuning in float32, as the method needs")
    for again in row.repeats(repeats):
        for entry, new in _cells(results, again, init_params):
            results.entries.append(entry)
            if new:  # what is there already stays, until this run has something to add
                results.write(complete=False)


def _cells(
    results: Results, row: Row, init_params: Params
) -> Iterator[tuple[dict[str, Any], bool]]:
    context = results.context
    start = results.attempt(row, None, lambda: cells.pretrained(context, row, init_params))
    if start is None:
        return
    if not context.target.data.train.labelled:
        report.say(f"{row.name}: no labels here, so no fine-tuning")
        return
    for seed in row.settings.seeds:
        made = results.attempt(
            row, seed, lambda seed=seed: cells.entry(context, row, seed, start, init_params)
        )
        if made:
            yield made


def show(results: Mapping[str, Any], workdir: Path) -> None:
    """What a run brought."""
    held_out = results["config"]["evaluate_on"]
    if results["results"]:
        metric = results["results"][0]["metric"]
        # Micro-F1 is the accuracy, so it is a column only where it is the headline.
        also, shown = ([], "") if metric == "accuracy" else (["accuracy", "macro_f1"], " and F1")
        columns = [metric, *also, f"{held_out}_loss", "train_loss", "distance"]
        report.say(f"\n{held_out} accuracy{shown} (%), mean ± std over fine-tuning seeds;")
        report.say("distance is the encoder's Euclidean distance from theta_init\n")
        report.say(report.table(results["summary"], list(dict.fromkeys(columns))))
    report.say(f"\nresults: {workdir / 'results.json'}")
