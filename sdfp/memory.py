"""How much memory of a device each stage will need, told before hours are spent.

Nothing is computed: a step is traced with shapes alone. Parameters, gradients, the optimiser's
state and data that stay on a device are certain; what the compiler keeps for the backward pass is
an estimate.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Literal

from sdfp import algorithm, machine, optim, report
from sdfp.data.loading import Feed
from sdfp.methods import combination
from sdfp.preflight import Source
from sdfp.rows import Row
from sdfp.settings import Recipe
from sdfp.stages import Context
from sdfp.train import evaluation, loop
from sdfp.types import LossFn, Params, UserError

SURE = 3
"""Times what is there: so far above it no estimate is wrong (docs/performance.md)."""


class Need(NamedTuple):
    """Bytes of one device."""

    held: int
    """Parameters and their gradients, the optimiser's state, resident data: certain."""
    activations: int
    """What the forward pass of one micro-batch leaves for the backward pass, as traced; and a
    teacher, which is not there once its outputs are a table."""


class Step(NamedTuple):
    """What decides the memory of a stage."""

    loss_fn: LossFn
    recipe: Recipe
    feed: str
    """"train" or "unlabelled", of the target; "source"."""
    tx: optax.GradientTransformation
    teacher: Callable | None
    """(frozen, batch) -> what the loss finds as batch["target"]."""


def check(
    context: Context,
    candidates: Iterable[Row],
    params: Params,
    source: Source | None,
    left: Collection[str],
) -> None:
    """Tells the largest need of a run.

    Args:
        params: the shapes of theta_init and phi_init.
        source: where there is a stage "pretrain".
        left: the stages that are not finished.

    Raises:
        UserError: what is certain alone is more than a device has, or all of it far more.
    """
    needs = _needs(context, candidates, params, source, left)
    if not needs:
        return
    there = machine.memory(context.place.devices.count)
    name, need = max(needs.items(), key=lambda item: sum(item[1]))
    told = f"memory: {name} needs about {report.gigabytes(sum(need))} of a device"
    if there is None:
        report.say(told)
        return
    held_by, most = max(needs.items(), key=lambda item: item[1].held)
    if most.held > there:
        raise UserError(
            f"memory: {held_by} needs {report.gigabytes(most.held)} of a device for parameters, "
            f"gradients, AdamW and data alone, {report.gigabytes(there)} are there: take a smaller "
            "model, a larger device, or a lower config.run.resident_gb"
        )
    if sum(need) > SURE * there:
        raise UserError(
            f"{told}, {report.gigabytes(there)} are there: raise accumulate in config.stages, or "
            "take a smaller model or a larger device"
        )
    report.say(f"{told}, {report.gigabytes(there)} are there")
    if sum(need) > there:
        report.say("warning: memory: if it fails, raise accumulate in the recipes of config.stages")


def _needs(
    context: Context,
    candidates: Iterable[Row],
    params: Params,
    source: Source | None,
    left: Collection[str],
) -> dict[str, Need]:
    """Of every stage; those that are alike are traced once."""
    target, settings = context.target, context.settings
    fed = {name: (target.data.prepare, feed) for name, feed in target.feeds.items()}
    steps = [step for row in candidates for step in _steps(context, row, params)]
    if source:
        fed["source"] = source.data.prepare, source.feeds["unlabelled"]
        recipe = settings.stages.pretrain
        loss_fn, tx = algorithm.masked_loss(context.backbone), optim.adamw_of(recipe)
        steps.append(("pretrain", Step(loss_fn, recipe, "source", tx, None), params, None))
    steps = [step for step in steps if step[0] in left]
    devices, fsdp = context.place.devices.count, settings.parallel.fsdp
    alike = {step: (trained, frozen) for _, step, trained, frozen in steps}
    known = {
        step: need_of(step, *read, *fed[step.feed], devices, fsdp) for step, read in alike.items()
    }
    return {name: known[step] for name, step, _, _ in steps}


def _steps(
    context: Context, row: Row, params: Params
) -> list[tuple[str, Step, Params, Params | None]]:
    """Name, step, shapes of what is trained and of what is only read, of the stages of a row. A
    larger or a given teacher counts as one of the student's size."""
    backbone, recipes, found = context.backbone, row.settings.stages, []

    def fit(name, loss_fn, params, *, recipe=None, frozen=None, per_example=None, **more):
        own = bool(more.get("weights") or more.get("identity"))
        how = getattr(recipes, recipe or name)
        step = Step(loss_fn, how, "unlabelled", optim.adamw_of(how), per_example)
        found.append((row.masked_stage(name, own), step, params, frozen))
        return params

    start = row.method.pretrain(params, backbone=backbone, fit=fit)
    if not context.target.data.train.labelled:
        return found
    classes = len(context.target.data.class_names)
    head = lambda params: backbone.add_head(params, classes, jax.random.key(0))
    classifier = jax.eval_shape(head, start)
    taught = any("teacher" in combination.changes(part) for part in combination.parts(row.name))
    teacher = evaluation.eval_logits(backbone) if taught else None
    tx = row.method.make_optimizer(recipes.finetune)
    step = Step(row.method.finetune_loss(backbone), recipes.finetune, "train", tx, teacher)
    frozen = classifier if taught else None
    names = map(row.finetuning_stage, row.settings.seeds)
    return found + [(name, step, classifier, frozen) for name in names]


def need_of(
    step: Step,
    params: Params,
    frozen: Params | None,
    prepare: Callable,
    feed: Feed,
    devices: int,
    fsdp: bool = False,
) -> Need:
    """Of a stage, from shapes.

    Args:
        params, frozen: what it trains, and what it only reads.
        prepare: of its data set, see `loop.make_prepare`.
        devices: that share a micro-batch; with `fsdp` also what is held between steps.
    """
    state = jax.eval_shape(step.tx.init, params)
    # Not the devices' own: with pmap they have another shape.
    arrays = {name: feed.split.arrays[name] for name in feed.resident}
    resident = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in arrays.items()}
    held = _size(params) + _size(state)
    if fsdp:  # a part of it, and for each step the whole of what the losses read
        held = held // devices + _size(params)
    held += _size(params) + _size(resident)  # the gradient
    prepare = loop.make_prepare(prepare, step.recipe.augment, step.teacher)

    def forward(params, frozen, resident, batch, key):
        """What the backward pass of the step is given."""

        def objective(params):
            terms = step.loss_fn(params, frozen, prepare(frozen, resident, batch, key), key)
            return sum(jnp.sum(values) for values in terms.values())

        return jax.vjp(objective, params)[1]

    batch = _batch(feed, step.recipe, devices)
    arguments = (params, frozen, resident, batch, jax.random.key(0))
    traced = jax.make_jaxpr(forward)(*arguments).jaxpr
    given = {*traced.invars, *traced.constvars}
    kept = {var for var in traced.outvars if not isinstance(var, Literal)} - given
    return Need(held, sum(_bytes(var.aval) for var in kept) + _size(frozen))


def _batch(feed: Feed, recipe: Recipe, devices: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the part of a micro-batch that one device gets."""
    examples = len(feed.split)
    order = loop.Order(0, recipe.batch_size, recipe.accumulate, devices)
    arrange = feed.layout(order.sample(examples), devices, complete=False)
    batch = dict(arrange(order.batch(0, examples)))
    batch.update(feed.rows(batch["index"]))
    shape = lambda leaf: (leaf.shape[1] // devices, *leaf.shape[2:])
    return {key: jax.ShapeDtypeStruct(shape(leaf), leaf.dtype) for key, leaf in batch.items()}


def _size(tree: Any) -> int:
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _bytes(array: Any) -> int:
    return array.size * getattr(array.dtype, "itemsize", 8)  # a key has no size of its own
