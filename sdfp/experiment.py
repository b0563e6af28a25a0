"""The whole program: config -> data, backbone, rows -> results.

config --parse--> settings --+--> data set, source data set
                             +--> backbone, theta_init (weights | scratch | pretrain stage)
for each row:      rows.py: the methods of its name, and candidates where settings are chosen
    cells.py:      pre-training, and for each seed fine-tuning and evaluation
                   (stages.py: how each is trained, or read, if it is there)
                                                                --> results.json
"""

import dataclasses
import functools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import sdfp
from sdfp import cells, checkpoint, config, initial, parallel, preflight, report, rows, stages
from sdfp.methods.registry import METHODS
from sdfp.models.registry import BACKBONES
from sdfp.rows import Row
from sdfp.settings import Experiment
from sdfp.stages import Context
from sdfp.train.stage import Place
from sdfp.types import Params, UserError, WorkdirError, one_line


class Wish(NamedTuple):
    """What a table can ask for beyond its config."""

    grid: Mapping[str, Sequence] = {}
    """"method.key" -> values, of which the one is taken that is best on the validation part."""
    pretrain_seeds: int = 1
    """How often the pre-training stages are repeated: with config.seed, config.seed + 1, ..."""


CONFIG_ONLY = Wish()


def parse(raw: Mapping[str, Any]) -> Experiment:
    """A checked config. Raises UserError."""
    return config.parse(
        raw,
        {name: family.settings for name, family in BACKBONES.items()},
        {name: method.settings for name, method in METHODS.items()},
    )


def run(raw: Mapping[str, Any], workdir: Path, wish: Wish = CONFIG_ONLY) -> dict[str, Any]:
    """Runs everything that a config asks for, or what a work directory still lacks of it.

    A cell that fails (its loss is not finite, no memory for it, its teacher cannot be read) is
    reported, and the others go on: see `check`.

    Args:
        raw: a ConfigDict with the keys of configs/common.py.
        workdir: receives results.json, stages/, tensorboard/.
        wish: what to do beyond the config.

    Returns:
        What is written to results.json.

    Raises:
        UserError: a mistake of the user's, told in one line.
    """
    settings = parse(raw)
    groups = rows.expand(settings, wish.grid)
    precision = parallel.precision(settings.precision)
    preflight.check_workdir(workdir)
    with precision.context():
        place = Place(workdir, parallel.make(**vars(settings.parallel)), settings.run)
        _greet(settings, place, precision)
        target = preflight.load_data("data", settings.data, place)
        backbone, model, init = initial.load(settings, place, precision.dtype, target.data.input)
        BACKBONES[settings.model_name].check_input(model, target.data.input, "data")
        asked = {f"config.evaluate_on={settings.evaluate_on}": settings.evaluate_on}
        asked |= {"--tune": "validation"} if wish.grid else {}
        preflight.check_held_out(asked, target.data)
        preflight.check_names(settings, init.params)
        facts = {"data": target.data.facts}
        context = Context(settings, place, target, backbone, model, precision, facts, {}, {}, {})
        results = Results(context, init.record)
        start = stages.initial_params(context, Row("finetune", settings), init.params)
        for candidates in groups:
            _run_row(results, candidates, start, wish.pretrain_seeds)
    return results.write(complete=True)


def check(results: Mapping[str, Any]) -> None:
    """Raises UserError if cells failed, and RuntimeError if that was not the user's mistake."""
    failed = results["failed"]
    if failed:
        first = failed[0]
        seed = "" if first["seed"] is None else f", seed {first['seed']}"
        cell = first["method"] + seed
        line = f"{len(failed)} failed, the others are in the results; {cell}: {first['error']}"
        raise (RuntimeError if any(cell["ours"] for cell in failed) else UserError)(line)


@dataclasses.dataclass
class Results:
    """results.json as far as the run has come."""

    context: Context
    init: dict[str, Any]
    entries: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failed: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    tuning: dict[str, dict] = dataclasses.field(default_factory=dict)

    def write(self, complete: bool) -> dict[str, Any]:
        context = self.context
        results = {
            "complete": complete and not self.failed,
            "config": dataclasses.asdict(context.settings),
            "model": dataclasses.asdict(context.model),
            "versions": report.versions(),
            "device": f"{context.place.devices.count} x {jax.devices()[0].device_kind}",
            "precision": context.precision.name,
            **context.facts,
            "init": self.init,
            "stages": list(context.records.values()),
            "tuning": self.tuning,
            "results": self.entries,
            "failed": self.failed,
            "summary": report.summary(self.entries),
        }
        checkpoint.write_json(context.place.workdir / "results.json", results)
        return results

    def attempt(
        self, row: Row, seed: int | None, run: Callable[[], Any], failed: list | None = None
    ) -> Any:
        """What `run` returns; None if it fails, which is told here and noted in `failed`."""
        try:
            return run()
        except WorkdirError:
            raise
        except Exception as error:
            ours = not isinstance(error, UserError)
            if ours:
                traceback.print_exc()
            told = one_line(error) if str(error) else type(error).__name__
            report.say(f"{row.finetuning_stage(seed or 0)}: failed: {told}")
            repeat = row.settings.seed if row.pretrains else None
            (self.failed if failed is None else failed).append(
                {"method": row.name, "varied": dict(row.varied), "pretrain_seed": repeat}
                | {"seed": seed, "error": told, "ours": ours}
            )
            return None


def _run_row(results: Results, candidates: list[Row], init: Params, repeats: int) -> None:
    """Every cell of a row, after its settings were chosen where there is a choice."""
    row = candidates[0] if len(candidates) == 1 else _choose(results, candidates, init)
    if row is None:
        return
    if row.method.float32 and results.context.precision.name != "float32":
        report.say(f"{row.name}: fine-tuning in float32, as the method needs")
    first = row.settings.seed
    for seed in range(first, first + (repeats if row.pretrains else 1)):
        for entry, new in _cells(results, row.repeated(seed), init):
            results.entries.append(entry)
            if new:  # what is there already stays, until this run has something to add
                results.write(complete=False)


def _cells(results: Results, row: Row, init: Params) -> Iterator[tuple[dict[str, Any], bool]]:
    context = results.context
    start = results.attempt(row, None, lambda: cells.pretrained(context, row, init))
    if start is None:
        return
    if not context.target.data.train.labelled:
        report.say(f"{row.name}: no labels here, so no fine-tuning")
        return
    for seed in row.settings.seeds:
        made = results.attempt(
            row, seed, lambda seed=seed: cells.entry(context, row, seed, start, init)
        )
        if made:
            yield made


def _choose(results: Results, candidates: list[Row], init: Params) -> Row | None:
    """The candidate with the highest mean over the seeds on the validation part. The reported
    split is not looked at. A candidate that fails is out; only if all do, the row has failed."""
    metric, failed = results.context.target.data.metric, []
    means: list[float | None] = []
    told = []
    for row in candidates:
        values = _scores(results, row, init, failed)
        scores = [value for value in values if value is not None]
        means.append(float(np.mean(scores)) if len(scores) == len(values) else None)
        told.append({"settings": _values(row, candidates), "values": values, "mean": means[-1]})
        shown = "failed" if means[-1] is None else f"validation {metric} {means[-1]:.2f}"
        report.say(f"{row.name} {told[-1]['settings']}: {shown}")
    whole = [mean for mean in means if mean is not None]
    chosen = means.index(max(whole)) if whole else None
    results.tuning[candidates[0].name] = {
        "split": "validation",
        "metric": metric,
        "candidates": told,
        "chosen": chosen,
    }
    if chosen is None:
        results.failed.extend(failed)
        return None
    return candidates[chosen]


def _scores(results: Results, row: Row, init: Params, failed: list) -> list[float | None]:
    """The validation part's score for each seed, None where that failed."""
    context = results.context
    attempt = functools.partial(results.attempt, row, failed=failed)
    start = attempt(None, lambda: cells.pretrained(context, row, init))
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


def _greet(settings: Experiment, place: Place, precision: parallel.Precision) -> None:
    report.say(
        f"sdfp {sdfp.__version__}: {settings.name} in {place.workdir}, "
        f"{place.devices.count} x {jax.devices()[0].device_kind} ({settings.parallel.backend}), "
        f"{precision.name}"
    )


def conclude(results: Mapping[str, Any], workdir: Path) -> None:
    """Shows what a run brought; then as `check`."""
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
    check(results)
