"""The stages of a run, bound to data, devices and checkpoints: masked ones (the `fit` of Algorithm
1 and of the methods), fine-tuning, and the evaluation of what it left."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from sdfp import algorithm, checkpoint, initial, logged, parallel, preflight, report, rows, trained
from sdfp.data import inputs
from sdfp.data.interface import Dataset
from sdfp.methods import combination
from sdfp.methods.interface import Teacher
from sdfp.models.interface import Backbone, Card
from sdfp.models.registry import BACKBONES
from sdfp.rows import Row
from sdfp.settings import Experiment
from sdfp.train import evaluation, probe
from sdfp.train.kept import Outcome
from sdfp.train.stage import Place, Stage, run_stage
from sdfp.types import Params, UserError, one_line


class Context(NamedTuple):
    """What every stage of a run shares."""

    settings: Experiment
    place: Place
    target: preflight.Source
    backbone: Backbone
    model: Any
    """The backbone's settings, as its weights have them."""
    precision: parallel.Precision
    facts: dict[str, dict]
    """For results.json: fingerprint and notes of `data`, and of `source` if it is used; of
    `teachers`, the larger ones, what their initial parameters are."""
    records: dict[str, dict]
    """Stage name -> its record for results.json, in the order of the run."""
    failed: dict[str, Exception]
    """What this run tried in vain, and a like error: it is not tried again for another row."""
    teachers: dict[str, tuple[Teacher, list[str]]]
    """Larger or given teachers by their stage or path, and the stages that they took."""


def masked(
    context: Context,
    source: preflight.Source,
    row: Row,
    used: list[str],
    name: str,
    loss_fn,
    params: Params,
    *,
    recipe: str | None = None,
    stream: str | None = None,
    times: int = 1,
    weights: Mapping[str, float] | None = None,
    identity: Mapping[str, Any] | None = None,
    **stage: Any,
) -> Params:
    """The `fit` that Algorithm 1 and the methods are given: one masked stage on `source`.

    Args:
        used: gets the stage's name.
        name: of the stage, and of its recipe unless `recipe` names another one.
        stream: another stage's name, to draw its batches, masks and dropout.
        times: how often the recipe's steps are done.
        weights: factor of each term of the loss; 1 where absent.
        identity: what else changes the stage's result.
        stage: further fields of `Stage`: frozen, per_example.
    """
    folder = row.masked_stage(name, own=bool(weights or identity))
    outcome = _run(
        context,
        Stage(
            folder,
            loss_fn,
            params,
            origin=checkpoint.digest(params),
            recipe=rows.repeat(getattr(row.settings.stages, recipe or name), times),
            feed=source.feeds["unlabelled"],
            prepare=source.data.prepare,
            seed=row.settings.seed,
            stream=stream or name,
            card=_card(context, source.data, ()),
            identity=_identity(context, source.data, *context.model.MASKED_ONLY)
            | dict(identity or {}),
            weights=weights or {},
            **stage,
        ),
        _probe(context),
    )
    used.append(folder)
    context.records[folder] |= _masked_loss(context, source.data, outcome)
    context.records[folder] |= _probed(outcome)
    evaluation.save_reconstructions(
        outcome.directory,
        source.data,
        context.backbone,
        outcome.params,
        context.settings.run.pictures,
    )
    return outcome.params


def _probe(context: Context) -> Callable | None:
    """The probe of masked stages, as `run_stage` takes it: always on the target's labels."""
    data, feeds = context.target
    if "probe" not in feeds:
        return None
    return partial(probe.measure, feed=feeds["probe"], **_passed(context, data))


def _probed(outcome: Outcome) -> dict[str, Any]:
    """For the record: what the probes of a masked stage found."""
    found = probe.summary(logged.read(outcome.directory))
    if "warning" in found and not outcome.new:  # else it was told in its time
        report.say(f"warning: {outcome.record['name']}: {found['warning']}")
    return found


def _run(context: Context, stage: Stage, probe: Callable | None = None) -> Outcome:
    with tried_once(context, stage.name):
        outcome = run_stage(stage, context.place, probe)
    if not outcome.new and stage.name not in context.records:  # of a shared stage, told once
        lacking = logged.lacking(outcome.directory, outcome.record["steps"])
        if lacking:
            report.say(f"warning: {lacking}")
    context.records[stage.name] = dict(outcome.record)
    return outcome


@contextlib.contextmanager
def tried_once(context: Context, name: str) -> Iterator[None]:
    """What failed before in this run fails again at once."""
    if name in context.failed:
        # Without the traceback of the time before: it would keep whole training states in memory.
        raise context.failed[name].with_traceback(None)
    try:
        yield
    except Exception as error:
        kind = type(error) if isinstance(error, UserError) else RuntimeError
        context.failed[name] = kind(one_line(error))
        raise


def finetuning(
    context: Context, row: Row, seed: int, params: Params, origin: str, teacher: Teacher | None
) -> Outcome:
    """Line 13 of Algorithm 1 for one seed: a fresh head, the row's loss and optimiser.

    Args:
        params: {"encoder", ...} that it starts from.
        origin: digest of that encoder; the head comes from the seed.
        teacher: what the row's loss learns from beside the labels, if anything.
    """
    (data, feeds), method, backbone = context.target, row.method, context.backbone
    fresh = backbone.add_head(params, len(data.class_names), jax.random.key(seed))
    own: dict[str, Any] = combination.finetuning_identity(row.name, row.settings.method)
    if teacher:
        own["teacher"] = teacher.architecture
    return _run(
        context,
        Stage(
            row.finetuning_stage(seed),
            method.finetune_loss(backbone),
            jax.device_get(fresh),
            origin=origin,
            recipe=row.settings.stages.finetune,
            feed=feeds["train"],
            prepare=data.prepare,
            seed=seed,
            stream="finetune",  # one order of batches for every method
            identity=_identity(context, data, *context.model.FINETUNE_ONLY)
            | ({"method": own} if own else {}),
            card=_card(context, data, data.class_names),
            frozen=teacher and teacher.params,
            per_example=teacher and evaluation.eval_logits(teacher.backbone),
            make_optimizer=method.make_optimizer,
        ),
    )


def measured(context: Context, outcome: Outcome, split: str) -> dict[str, float]:
    """What a fine-tuned model makes of a held-out split; see `evaluation.evaluate`."""
    data, feeds = context.target
    reported = split == context.settings.evaluate_on
    show = partial(inputs.KINDS[data.input["kind"]].show, data.input)
    return evaluation.evaluate(
        outcome.directory if reported else outcome.directory / split,
        outcome.params,
        {
            "params": outcome.record["digest"],
            "classes": list(data.class_names),
            split: data.notes["held_out"][split],
        },
        feeds["train"],
        getattr(data, split),
        class_names=data.class_names,
        show=show if context.settings.run.pictures else None,
        **_how(context, data),
    )


def precise(context: Context, float32: bool) -> tuple[Context, contextlib.AbstractContextManager]:
    """The context, or one that computes in float32, and what it takes to compute so."""
    if not float32 or context.precision.name == "float32":
        return context, contextlib.nullcontext()
    precision = parallel.precision("float32")
    model = dataclasses.replace(context.model, **context.model.PORTABLE)
    family = BACKBONES[context.settings.model_name]
    backbone = initial.make_backbone(family, model, precision.dtype)
    made = context._replace(backbone=backbone, model=model, precision=precision)
    return made, precision.context()


def initial_params(
    context: Context, row: Row, params: Params, source: preflight.Source | None = None
) -> Params:
    """theta_init, phi_init: as loaded, or pre-trained on `config.source` from there.

    Args:
        source: that data set, where it was loaded already.
    """
    settings = context.settings
    if settings.init.kind != "pretrain":
        return params
    if source is None:
        place, target = context.place, context.target
        source = preflight.load_data("source", settings.source, place, beside=target)
    context.facts["source"] = source.data.facts
    loss_fn = algorithm.masked_loss(context.backbone)
    return masked(context, source, row, [], "pretrain", loss_fn, params)


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
        "precision": context.precision.name,
    }


def _how(context: Context, data: Dataset) -> dict[str, Any]:
    """How examples are evaluated."""
    return {"resident_gb": context.settings.run.resident_gb, **_passed(context, data)}


def _passed(context: Context, data: Dataset) -> dict[str, Any]:
    """How examples go through the model."""
    how = {"rows": context.settings.run.eval_batch_size, "devices": context.place.devices}
    return how | {"backbone": context.backbone, "prepare": data.prepare}


def _card(context: Context, data: Dataset, class_names: tuple[str, ...]) -> dict[str, Any]:
    card = Card(context.model, data.input, class_names)
    return trained.to_json(context.settings.model_name, card)
