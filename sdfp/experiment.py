"""Wiring: config -> data, backbone, stages -> results. `run` is the whole program.

config --parse--> settings --+--> data set, source data set
                             +--> backbone, theta_init (weights | scratch | pretrain stage)
for each method:  pretrain(theta_init, fit) -> parameters     fit = run_stage + pictures
    for each seed:  fine-tuning stage -> evaluation           -> results.json, table
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

import sdfp
from sdfp import algorithm, checkpoint, config, initial, parallel, preflight, report, trained
from sdfp.data.interface import Dataset
from sdfp.methods.registry import METHODS
from sdfp.models.interface import Backbone, Card
from sdfp.models.registry import BACKBONES
from sdfp.settings import Experiment
from sdfp.train import evaluation
from sdfp.train.evaluation import METRICS
from sdfp.train.kept import Outcome
from sdfp.train.stage import Place, Stage, run_stage
from sdfp.types import Params


class Context(NamedTuple):
    """What every stage of a run shares."""

    settings: Experiment
    place: Place
    target: preflight.Source
    backbone: Backbone
    model: Any
    """The backbone's settings, as its weights have them."""
    precision: str
    """Resolved: float32, tf32 or bfloat16."""
    init_record: dict[str, Any]
    facts: dict[str, dict]
    """For results.json: fingerprint and notes of `data`, and of `source` if it is used."""
    records: dict[str, dict]
    """Stage name -> its record for results.json, in the order of the run."""


def run(raw: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """Runs everything that a config asks for, or what a work directory still lacks of it.

    Args:
        raw: a ConfigDict with the keys of configs/common.py.
        workdir: receives results.json, stages/, tensorboard/.

    Returns:
        What is written to results.json.

    Raises:
        UserError: a mistake of the user's, told in one line.
    """
    settings = config.parse(
        raw,
        {name: family.settings for name, family in BACKBONES.items()},
        {name: method.settings for name, method in METHODS.items()},
    )
    precision = parallel.precision(settings.precision)
    preflight.check_workdir(workdir)
    with precision.context():
        place = Place(workdir, parallel.make(**vars(settings.parallel)), settings.run)
        _greet(settings, place, precision)
        target = preflight.load_data("data", settings.data, place)
        backbone, model, init = initial.load(settings, place, precision.dtype, target.data.input)
        BACKBONES[settings.model_name].check_input(model, target.data.input, "data")
        preflight.check_held_out(settings, target.data)
        preflight.check_names(settings, init.params)
        context = Context(
            settings, place, target, backbone, model, precision.name, init.record, {}, {}
        )
        context.facts["data"] = target.data.facts
        entries: list[dict[str, Any]] = []
        for entry, new in _rows(context, _initial(context, init.params)):
            entries.append(entry)
            if new:  # what is there already stays, until this run has something to add
                _write_results(context, entries, complete=False)
    results = _write_results(context, entries, complete=True)
    _farewell(results, target.data.metric, workdir)
    return results


def _write_results(context: Context, entries: list[dict[str, Any]], complete: bool):
    """results.json as far as the run has come."""
    place = context.place
    results = {
        "complete": complete,
        "config": dataclasses.asdict(context.settings),
        "model": dataclasses.asdict(context.model),
        "versions": report.versions(),
        "device": f"{place.devices.count} x {jax.devices()[0].device_kind}",
        "precision": context.precision,
        **context.facts,
        "init": context.init_record,
        "stages": list(context.records.values()),
        "results": entries,
        "summary": report.summary(entries),
    }
    checkpoint.write_json(place.workdir / "results.json", results)
    return results


def _initial(context: Context, init_params: Params) -> Params:
    """theta_init, phi_init: as loaded, or pre-trained on `config.source` from there."""
    settings = context.settings
    if settings.init.kind != "pretrain":
        return init_params
    source = preflight.load_data("source", settings.source, context.place)
    family = BACKBONES[settings.model_name]
    family.check_input(context.model, source.data.input, "source")
    preflight.check_one_tokenizer(source.data, context.target.data)
    context.facts["source"] = source.data.facts
    return _fit(context, source, "pretrain", algorithm.masked_loss(context.backbone), init_params)


def _fit(
    context: Context,
    source: preflight.Source,
    name: str,
    loss_fn,
    params: Params,
    *,
    recipe: str | None = None,
    identity: Mapping[str, Any] | None = None,
    **stage: Any,
) -> Params:
    """The `fit` that Algorithm 1 and the methods are given: one masked stage on `source`.

    Args:
        name: of the stage, and of its recipe unless `recipe` names another one.
        identity: what else changes the stage's result.
        stage: further fields of `Stage`: frozen, per_example, weights.
    """
    outcome = run_stage(
        Stage(
            name,
            loss_fn,
            params,
            origin=checkpoint.digest(params),
            recipe=getattr(context.settings.stages, recipe or name),
            feed=source.feeds["unlabelled"],
            prepare=source.data.prepare,
            seed=context.settings.seed,
            stream=name,
            card=_card(context, source.data, ()),
            identity=_identity(context, source.data, *context.model.MASKED_ONLY)
            | dict(identity or {}),
            **stage,
        ),
        context.place,
    )
    context.records[name] = outcome.record | _masked_loss(context, source.data, outcome)
    evaluation.save_reconstructions(
        outcome.directory,
        source.data,
        context.backbone,
        outcome.params,
        context.settings.run.pictures,
    )
    return outcome.params


def _masked_loss(context: Context, data: Dataset, outcome: Outcome) -> dict[str, float]:
    """For the record: the masked loss on the reported split, if that is asked for and there."""
    name = context.settings.evaluate_on
    held_out = getattr(data, name)
    if not context.settings.run.masked_loss or held_out is None:
        return {}
    loss = evaluation.masked_loss(
        outcome.directory,
        outcome.params,
        outcome.record["digest"],
        held_out,
        data.notes["held_out"][name],
        **_how(context, data),
    )
    report.say(f"{outcome.record['name']}: {name} masked loss {loss:.4f}")
    return {f"{name}_masked_loss": loss}


def _identity(context: Context, data: Dataset, *fields: str) -> dict[str, Any]:
    """What all stages' results depend on; `fields` are those of the model's settings that
    only this kind of stage depends on."""
    return {
        "data": data.fingerprint,
        "model": initial.architecture(context.settings.model_name, context.model, *fields),
        "precision": context.precision,
    }


def _how(context: Context, data: Dataset) -> dict[str, Any]:
    """How examples are evaluated."""
    run, devices = context.settings.run, context.place.devices
    how = {"rows": run.eval_batch_size, "resident_gb": run.resident_gb, "devices": devices}
    return how | {"backbone": context.backbone, "prepare": data.prepare}


def _card(context: Context, data: Dataset, class_names: tuple[str, ...]) -> dict[str, Any]:
    card = Card(context.model, data.input, class_names)
    return trained.to_json(context.settings.model_name, card)


def _rows(context: Context, init_params: Params) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every method and seed: the entries of results.json, and whether this run made them."""
    settings = context.settings
    fit = functools.partial(_fit, context, context.target)
    for name in settings.methods:
        params = METHODS[name].pretrain(
            init_params, backbone=context.backbone, fit=fit, settings=settings.method[name]
        )
        if context.target.data.train.labelled:
            for seed in settings.seeds:
                yield _finetune(context, name, seed, params, init_params)
        else:
            report.say(f"{name}: no labels here, so no fine-tuning")


def _finetune(
    context: Context, method: str, seed: int, params: Params, init_params: Params
) -> tuple[dict[str, Any], bool]:
    """Line 13 of Algorithm 1 for one seed, and what came of it."""
    backbone, (data, feeds), settings = context.backbone, context.target, context.settings
    outcome = run_stage(
        Stage(
            f"finetune/{method}/seed_{seed}",
            algorithm.finetune_loss(backbone),
            jax.device_get(backbone.add_head(params, len(data.class_names), jax.random.key(seed))),
            origin=checkpoint.digest(params["encoder"]),  # the head comes from the seed
            recipe=settings.stages.finetune,
            feed=feeds["train"],
            prepare=data.prepare,
            seed=seed,
            stream="finetune",  # one order of batches for every method
            identity=_identity(context, data, *context.model.FINETUNE_ONLY),
            card=_card(context, data, data.class_names),
        ),
        context.place,
    )
    context.records[outcome.record["name"]] = outcome.record
    held_out = settings.evaluate_on
    metrics = evaluation.evaluate(
        outcome.directory,
        outcome.params,
        {
            "params": outcome.record["digest"],
            "classes": list(data.class_names),
            held_out: data.notes["held_out"][held_out],
        },
        feeds["train"],
        getattr(data, held_out),
        class_names=data.class_names,
        **_how(context, data),
    )
    value = metrics[data.metric]
    report.say(
        f"{outcome.record['name']}: {held_out} {data.metric.replace('_f1', '-F1')} {value:.2f}"
    )
    return {
        "method": method,
        "seed": seed,
        "split": held_out,
        "metric": data.metric,
        "value": value,
        **{name: metrics[name] for name in METRICS},
        f"{held_out}_loss": metrics["loss"],
        "train_accuracy": metrics["train_accuracy"],
        "train_loss": metrics["train_loss"],
        "distance": evaluation.distance(outcome.params["encoder"], init_params["encoder"]),
        "stage": outcome.record["name"],
        "stage_key": outcome.record["key"],
    }, outcome.new


def _greet(settings: Experiment, place: Place, precision: parallel.Precision) -> None:
    report.say(
        f"sdfp {sdfp.__version__}: {settings.name} in {place.workdir}, "
        f"{place.devices.count} x {jax.devices()[0].device_kind} ({settings.parallel.backend}), "
        f"{precision.name}"
    )


def _farewell(results: dict[str, Any], metric: str, workdir: Path) -> None:
    held_out = results["config"]["evaluate_on"]
    if results["summary"]:
        # Micro-F1 is the accuracy, so it is a column only where it is the headline.
        also, shown = ([], "") if metric == "accuracy" else (["accuracy", "macro_f1"], " and F1")
        columns = [metric, *also, f"{held_out}_loss", "train_loss", "distance"]
        report.say(f"\n{held_out} accuracy{shown} (%), mean ± std over fine-tuning seeds;")
        report.say("distance is the encoder's Euclidean distance from theta_init\n")
        report.say(report.table(results["summary"], list(dict.fromkeys(columns))))
    report.say(f"\nresults: {workdir / 'results.json'}")
