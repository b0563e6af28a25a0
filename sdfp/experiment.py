"""Wiring: config -> data, backbone, stages -> results. `run` is the whole program.

config --parse--> settings --+--> data set, source data set
                             +--> backbone, theta_init (weights | scratch | pretrain stage)
for each method:  pretrain(theta_init, fit) -> parameters     fit = run_stage + pictures
    for each seed:  fine-tuning stage -> evaluation           -> results.json, table
"""

import dataclasses
import functools
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import sdfp
from sdfp import algorithm, checkpoint, config, initial, parallel, report
from sdfp.data import loading
from sdfp.data.interface import Dataset
from sdfp.data.loading import Feed
from sdfp.data.registry import DATASETS
from sdfp.methods.registry import METHODS
from sdfp.models.interface import Backbone
from sdfp.models.registry import BACKBONES
from sdfp.settings import Data, Experiment
from sdfp.train import evaluation
from sdfp.train.stage import Outcome, Place, Stage, run_stage
from sdfp.types import Params, UserError

VERSIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Source(NamedTuple):
    """A data set and its splits on the way to the devices."""

    data: Dataset
    feeds: dict[str, Feed]


class Context(NamedTuple):
    """What every stage of a run shares."""

    settings: Experiment
    place: Place
    target: Source
    backbone: Backbone
    model: Any
    """The backbone's settings, as its weights have them."""
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
    with precision.context():
        place = Place(workdir, parallel.make(**vars(settings.parallel)), settings.run)
        _greet(settings, place, precision)
        target = _load("data", settings.data, place)
        backbone, model, init = initial.load(settings, place, precision.dtype)
        _check_input(model, settings.data, "data")
        context = Context(settings, place, target, backbone, model, {})
        entries = _rows(context, _initial(context, init.params))
    results = {
        "config": dataclasses.asdict(settings),
        "model": dataclasses.asdict(context.model),
        "versions": _versions(),
        "device": f"{place.devices.count} x {jax.devices()[0].device_kind}",
        "precision": precision.name,
        "data": {"fingerprint": target.data.fingerprint, **target.data.notes},
        "init": init.record,
        "stages": list(context.records.values()),
        "results": entries,
        "summary": report.summary(entries),
    }
    checkpoint.write_json(workdir / "results.json", results)
    _farewell(results, settings, workdir)
    return results


def _load(block: str, settings: Data, place: Place) -> Source:
    """The data set that a block of the config names, with its counts said."""
    if settings.name not in DATASETS:
        raise UserError(f"config.{block}.name: {settings.name!r} is none of {', '.join(DATASETS)}")
    data = DATASETS[settings.name](settings)
    counts = dict(data.notes["counts"])
    if data.unlabelled is data.train:
        del counts["unlabelled" if data.train.labelled else "train"]
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    classes = f", {len(data.class_names)} classes" if data.class_names else ""
    report.say(f"{block}: {settings.name}, {told}{classes}")
    for name, why in data.notes["broken"].items():
        report.say(f"{block}: left out {name}: {why}")
    splits = {name: getattr(data, name) for name in ("train", "unlabelled", "validation", "test")}
    opened = {
        id(split): loading.open_feed(split, place.devices, place.run.resident_gb)
        for split in splits.values()
        if split is not None  # `unlabelled` often is `train`: one copy on the devices
    }
    return Source(data, {name: opened[id(s)] for name, s in splits.items() if s is not None})


def _initial(context: Context, init_params: Params) -> Params:
    """theta_init, phi_init: as loaded, or pre-trained on `config.source` from there."""
    settings = context.settings
    if settings.init.kind != "pretrain":
        return init_params
    _check_input(context.model, settings.source, "source")
    source = _load("source", settings.source, context.place)
    return _fit(context, source, "pretrain", algorithm.masked_loss(context.backbone), init_params)


def _check_input(model: Any, data: Data, block: str) -> None:
    for key in ("image_size", "channels"):
        if getattr(model, key) != getattr(data, key):
            raise UserError(
                f"config.{block}.{key} is {getattr(data, key)}, config.model.{key} is "
                f"{getattr(model, key)}: they must be equal"
            )


def _fit(
    context: Context,
    source: Source,
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
            identity=_identity(context, source.data) | dict(identity or {}),
            **stage,
        ),
        context.place,
    )
    context.records[name] = outcome.record
    _draw(context, source.data, outcome)
    return outcome.params


def _identity(context: Context, data: Dataset) -> dict[str, Any]:
    return {
        "data": data.fingerprint,
        "model": {"name": context.settings.model_name, **dataclasses.asdict(context.model)},
        "precision": context.settings.precision,
    }


def _draw(context: Context, data: Dataset, outcome: Outcome) -> None:
    """A PNG of masked input, reconstruction, original for the first images."""
    path = outcome.directory / "reconstructions.png"
    count = min(context.settings.run.pictures, len(data.unlabelled))
    if not count or path.exists():
        return
    rows = {name: array[:count] for name, array in data.unlabelled.arrays.items()}
    raw = {**rows, "index": np.arange(count)}

    def pictures(params, batch):
        key = jax.random.key(0)
        return context.backbone.picture(params, data.prepare(batch, key, False), key)

    report.save_pictures(path, data.to_pixels(jax.jit(pictures)(outcome.params, raw)))
    report.say(f"{outcome.record['name']}: reconstructions in {path}")


def _rows(context: Context, init_params: Params) -> list[dict[str, Any]]:
    """Every method and seed: the entries of results.json."""
    settings = context.settings
    fit = functools.partial(_fit, context, context.target)
    entries = []
    for name in settings.methods:
        params = METHODS[name].pretrain(
            init_params, backbone=context.backbone, fit=fit, settings=settings.method[name]
        )
        if context.target.data.train.labelled:
            entries += [_finetune(context, name, s, params, init_params) for s in settings.seeds]
        else:
            report.say(f"{name}: no labels here, so no fine-tuning")
    return entries


def _finetune(
    context: Context, method: str, seed: int, params: Params, init_params: Params
) -> dict[str, Any]:
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
            identity=_identity(context, data),
        ),
        context.place,
    )
    context.records[outcome.record["name"]] = outcome.record
    metrics = evaluation.evaluate(
        outcome.directory,
        outcome.params,
        outcome.record["digest"],
        feeds,
        held_out=settings.evaluate_on,
        class_names=data.class_names,
        backbone=backbone,
        prepare=data.prepare,
        devices=context.place.devices,
        rows=settings.run.eval_batch_size,
    )
    moved = evaluation.distance(outcome.params["encoder"], init_params["encoder"])
    report.say(
        f"{outcome.record['name']}: {settings.evaluate_on} accuracy {metrics['accuracy']:.2f}"
    )
    return {
        "method": method,
        "seed": seed,
        "split": settings.evaluate_on,
        "metric": "accuracy",
        "value": metrics["accuracy"],
        f"{settings.evaluate_on}_loss": metrics["loss"],
        "train_accuracy": metrics["train_accuracy"],
        "train_loss": metrics["train_loss"],
        "distance": moved,
        "stage": outcome.record["name"],
        "stage_key": outcome.record["key"],
    }


def _versions() -> dict[str, str]:
    found = {name: metadata.version(name) for name in VERSIONS}
    return {"sdfp": sdfp.__version__, "python": platform.python_version(), **found}


def _greet(settings: Experiment, place: Place, precision: parallel.Precision) -> None:
    report.say(
        f"sdfp {sdfp.__version__}: {settings.name} in {place.workdir}, "
        f"{place.devices.count} x {jax.devices()[0].device_kind} ({settings.parallel.backend}), "
        f"{precision.name}"
    )


def _farewell(results: dict[str, Any], settings: Experiment, workdir: Path) -> None:
    held_out = settings.evaluate_on
    if results["summary"]:
        columns = ["accuracy", f"{held_out}_loss", "train_loss", "distance"]
        report.say(f"\n{held_out} accuracy (%), mean ± std over fine-tuning seeds; distance is")
        report.say("the encoder's Euclidean distance from theta_init\n")
        report.say(report.table(results["summary"], columns))
    report.say(f"\nresults: {workdir / 'results.json'}")
