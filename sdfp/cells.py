"""A cell of a table: a row's pre-training, its teacher if there is one, its fine-tuning."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

from sdfp import checkpoint, cli, initial, preflight, report, rows, stages, trained
from sdfp.initial import Initial
from sdfp.methods.interface import Teacher, Teachers
from sdfp.models.registry import BACKBONES
from sdfp.rows import Row
from sdfp.settings import Experiment
from sdfp.stages import Context
from sdfp.train import evaluation
from sdfp.train.evaluation import METRICS
from sdfp.train.kept import Outcome
from sdfp.types import Params, UserError


class Start(NamedTuple):
    """What a row's fine-tuning starts from."""

    params: Params
    stages: tuple[str, ...]
    """The masked stages that it took from theta_init on."""
    digest: str
    """Of the encoder, for all seeds."""


def pretrained(context: Context, row: Row, init_params: Params) -> Start:
    """Lines 1 to 12 of Algorithm 1, or what the row's method does in their place."""
    used: list[str] = []
    fit = partial(stages.masked, context, context.target, row, used)
    params = row.method.pretrain(init_params, backbone=context.backbone, fit=fit)
    return Start(params, tuple(used), checkpoint.digest(params["encoder"]))


def finetuned(context: Context, row: Row, seed: int, start: Start) -> tuple[Outcome, list[str]]:
    """Line 13 of Algorithm 1 for one seed, and the stages that it took from theta_init on."""
    used = list(start.stages)
    teacher = row.method.teacher(_teachers(context, row, seed, start, used))
    context, surroundings = stages.precise(context, row.method.float32)
    with surroundings:
        outcome = stages.finetuning(context, row, seed, start.params, start.digest, teacher)
    return outcome, [*used, outcome.record["name"]]


def measured(context: Context, row: Row, outcome: Outcome, split: str) -> dict[str, float]:
    """What the cell's model makes of a held-out split; see `evaluation.evaluate`."""
    context, surroundings = stages.precise(context, row.method.float32)
    with surroundings:
        return stages.measured(context, outcome, split)


def entry(
    context: Context, row: Row, seed: int, start: Start, init_params: Params
) -> tuple[dict[str, Any], bool]:
    """A cell: its entry for results.json, and whether this run made it."""
    outcome, used = finetuned(context, row, seed, start)
    held_out, data = context.settings.evaluate_on, context.target.data
    metrics = measured(context, row, outcome, held_out)
    value = metrics[data.metric]
    report.say(
        f"{outcome.record['name']}: {held_out} {data.metric.replace('_f1', '-F1')} {value:.2f}"
    )
    return {
        "method": row.name,
        "varied": dict(row.varied),
        "precision": stages.precise(context, row.method.float32)[0].precision.name,
        "pretrain_seed": row.settings.seed if row.pretrains else None,
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
        "stages": used,
    }, outcome.new


def _teachers(context: Context, row: Row, seed: int, start: Start, used: list[str]) -> Teachers:
    """What a method can ask for; `used` gets the stages that its teacher takes."""

    def same() -> Teacher:
        outcome, took = finetuned(context, row.untaught(), seed, start)
        return noted(_teacher(context, outcome), took)

    def larger(weights: str, depth: int) -> Teacher:
        name = row.teacher().finetuning_stage(0)
        if name not in context.teachers:  # one for all seeds
            with stages.tried_once(context, "theta_init of " + name):
                enlarged, init = _enlarged(context, row.teacher(), weights, depth)
            outcome, took = finetuned(enlarged, row.teacher(), context.settings.seed, init)
            context.teachers[name] = _teacher(enlarged, outcome), took
        return noted(*context.teachers[name])

    def given(path: str) -> Teacher:
        if path not in context.teachers:
            with stages.tried_once(context, path):
                context.teachers[path] = _given(context, path), []
        return noted(*context.teachers[path])

    def noted(teacher: Teacher, took: list[str]) -> Teacher:
        used.extend(name for name in took if name not in used)
        return teacher

    return Teachers(same, larger, given)


def check_teacher(context: Context, row: Row, seen: set) -> None:
    """Reads what a row's teacher is made of before any training; a given one is kept for its row.

    Args:
        seen: larger ones that were read for other rows; they are not read again.

    Raises:
        UserError: it does not fit.
    """
    teachers = _teachers(context, row, 0, Start({}, (), ""), [])

    def read(*larger):
        if larger not in seen:
            seen.add(larger)
            _read_larger(context, *larger)

    row.method.teacher(teachers._replace(same=lambda: None, larger=read))


def _teacher(context: Context, outcome: Outcome) -> Teacher:
    architecture = initial.architecture(context.settings.model_name, context.model)
    return Teacher(context.backbone, outcome.params, architecture)


def _read_larger(context: Context, weights: str, depth: int) -> tuple[Experiment, Initial]:
    """The settings of a larger model, and its initial parameters. Raises UserError where they do
    not fit the data."""
    settings = context.settings
    model = dataclasses.replace(context.model, depth=depth or 2 * context.model.depth)
    kind = rows.teacher_kind(settings, weights, depth)
    # The revision is one of the student's weights, and nobody needs the decoder.
    init = dataclasses.replace(
        settings.init, kind=kind, weights=weights, revision="", missing_decoder="scratch"
    )
    settings = dataclasses.replace(settings, model=model, init=init)
    start = initial.read(settings, context.precision.dtype)
    BACKBONES[settings.model_name].check_input(start.model, context.target.data.input, "data")
    preflight.check_attention(start.model)
    return settings, start


def _enlarged(context: Context, row: Row, weights: str, depth: int) -> tuple[Context, Start]:
    """The run as it were with a larger model, and that model's theta_init."""
    settings, start = _read_larger(context, weights, depth)
    name, input = row.masked_stage("init", own=True), context.target.data.input
    init = initial.kept(start, settings, context.place, input, name)
    context.facts.setdefault("teachers", {})[name] = init.record
    context = context._replace(settings=settings, backbone=start.backbone, model=start.model)
    params = stages.initial_params(context, row, init.params)
    return context, Start(params, (), checkpoint.digest(params["encoder"]))


def _given(context: Context, path: str) -> Teacher:
    """Raises UserError: not a classifier of these classes and inputs."""
    where, data = f"config.method.kd.teacher={path}", context.target.data
    found = trained.open_classifier(cli.path(path), "", where)
    if found.card.class_names != data.class_names:
        raise UserError(
            f"{where}: it tells {len(found.card.class_names)} classes apart, which are not the "
            f"{len(data.class_names)} of the data by name and order"
        )
    if found.card.input != data.input:
        keys = sorted(k for k, v in data.input.items() if found.card.input.get(k) != v)
        raise UserError(f"{where}: its input is made otherwise than the data's: {', '.join(keys)}")
    backbone = initial.make_backbone(found.family, found.card.settings, context.precision.dtype)
    name = next(name for name, family in BACKBONES.items() if family is found.family)
    return Teacher(backbone, found.params, initial.architecture(name, found.card.settings))
