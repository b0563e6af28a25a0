"""One training stage: from its identity to the parameters that it leaves."""

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sdfp import checkpoint, hosts, optim, report, signals
from sdfp.data import plan
from sdfp.data.loading import Feed
from sdfp.parallel import Devices
from sdfp.settings import Recipe, Run
from sdfp.train import kept, loop, skips, step
from sdfp.train.kept import Outcome
from sdfp.train.progress import Looks, Progress
from sdfp.train.saver import Saver
from sdfp.train.skips import Skips
from sdfp.types import LossFn, Params


class Stage(NamedTuple):
    """Everything that decides a stage's result."""

    name: str
    """Also its folder below WORKDIR/stages."""
    loss_fn: LossFn
    params: Params
    """Initial parameters, on the host."""
    origin: str
    """Digest of what `params` were made from."""
    recipe: Recipe
    feed: Feed
    prepare: Callable
    seed: int
    """Of the data order, the masks and the dropout, with `stream`."""
    stream: str
    identity: Mapping[str, Any]
    """Settings beyond the recipe that change the result: model, data, precision, ..."""
    card: Mapping[str, Any]
    """How to use the result elsewhere, see `kept.keep`."""
    frozen: Any = None
    """Parameters that are read and never trained: by `per_example`, else by the loss itself."""
    per_example: Callable | None = None
    weights: Mapping[str, float] = {}
    make_optimizer: Callable = optim.adamw_of
    """(recipe) -> optax.GradientTransformation, the same object for the same recipe."""


class Place(NamedTuple):
    """Where and how stages run: nothing that changes a result."""

    workdir: Path
    devices: Devices
    run: Run


def full_identity(stage: Stage) -> dict[str, Any]:
    """All that changes the stage's result.

    Not in it: back end, device count, logging, the list of methods, the workdir.
    """
    return {
        "name": stage.name,
        "recipe": asdict(stage.recipe),
        "seed": stage.seed,
        "weights": dict(stage.weights),
        "init": stage.origin,
        "frozen": checkpoint.digest(stage.frozen),
        **stage.identity,
    }


def run_stage(stage: Stage, place: Place, probe: Callable | None = None) -> Outcome:
    """Trains a stage, or goes on with it, or reads it, if this work directory has it.

    Args:
        probe: (parameters on the devices) -> what `probe.measure` returns, asked for before the
            first step, every `probe_every` steps and behind the last one. It changes nothing.

    Raises:
        WorkdirError: the directory holds this stage with other settings, its end is damaged, or
            the disk is full.
        UserError: too many steps had a loss or a gradient that is not finite, see `skips.noted`.
        signals.Interrupted: after the state was saved.
    """
    identity = full_identity(stage)
    facts = {"key": kept.key(identity), "name": stage.name}
    outcome = kept.keep(
        place.workdir,
        stage.name,
        identity,
        stage.card,
        partial(_train, stage, place, probe, facts),
    )
    checkpoint.drop_steps(outcome.directory)
    return outcome


def _train(
    stage: Stage,
    place: Place,
    probe: Callable | None,
    facts: Mapping[str, Any],
    directory: Path,
) -> tuple[Params, dict[str, Any]]:
    """Trains from the start or the newest checkpoint to the last step, or until a signal.

    Args:
        facts: whose a checkpoint is.

    Returns:
        The parameters on the host, and the facts for the record.
    """
    now = time.monotonic()
    devices, run, recipe = place.devices, place.run, stage.recipe
    with signals.at_once():
        state, before = _start(stage, directory, facts)
        first, state = int(state.step), devices.place(state)  # no second copy on the host
        frozen = devices.place(stage.frozen)
        feed, per_example = _teacher_table(stage, frozen, place)
    began, skipped, stop = now - before.seconds, before.skips, False
    if stage.per_example and not per_example:
        frozen = None  # the table has all that steps want of it
    pauses = (run.checkpoint_every, run.probe_every) if probe else (run.checkpoint_every,)
    calls = _calls(stage, place, pauses, state, frozen, feed, per_example)
    with _log(stage, place, directory, first, before.waiting) as log, Saver() as saver:
        look = Looks(stage.name, directory, log, probe) if probe else None
        if look and not first:
            began += look(0, state.params)  # it is no part of the stage's time
        for done, state, metrics in calls:
            skipped = skips.noted(
                skipped, stage.name, done, metrics, most=run.max_skipped, steps=recipe.steps
            )
            log.add(done, metrics)
            if look and (done % run.probe_every == 0 or done == recipe.steps):
                began += look(done, state.params)
            stop = hosts.any_of(signals.asked())
            if stop:
                signals.stopping()
            if stop or (done % run.checkpoint_every == 0 and done < recipe.steps):
                progress = Progress(time.monotonic() - began, list(log.waiting), skipped)
                saver.save(directory, done, devices.fetch(state), {**facts, **progress.facts()})
            if stop:
                break
    if stop:
        signals.stop()
    seconds, params = time.monotonic() - began, devices.fetch(state.params)
    return params, _record(stage, params, frozen and devices.fetch(frozen), seconds, skipped)


def _log(
    stage: Stage, place: Place, directory: Path, done: int, waiting: Sequence[Mapping[str, float]]
) -> report.StageLog:
    run = place.run
    board = place.workdir / "tensorboard" / stage.name if run.tensorboard else None
    steps = stage.recipe.steps
    return report.StageLog(directory, stage.name, steps, done, run.log_every, board, waiting)


def _record(
    stage: Stage, params: Params, frozen: Any, seconds: float, skipped: Skips
) -> dict[str, Any]:
    """Of a finished stage, see `Outcome`; parameters on the host."""
    recipe = stage.recipe
    seen = plan.examples_seen(recipe.steps, len(stage.feed.split), recipe.batch_size)
    return {
        "steps": recipe.steps,
        "seconds": round(seconds, 3),
        "examples_per_second": round(seen / seconds, 2),
        "skipped": skipped.count,
        "init_digest": stage.origin,
        "teacher_digest": _frozen_digest(stage, frozen),
        "encoder_digest": checkpoint.digest(params["encoder"]),
    }


def _calls(
    stage: Stage,
    place: Place,
    pauses: tuple[int, ...],
    state: step.State,
    frozen: Any,
    feed: Feed,
    per_example: Callable | None,
):
    """The stage's `loop.train`, from a state on the devices."""
    devices, recipe, order = place.devices, stage.recipe, f"{stage.stream}/{stage.seed}"
    return loop.train(
        state,
        frozen,
        feed,
        jax.random.fold_in(jax.random.key(stage.seed), zlib.crc32(stage.stream.encode())),
        compiled=loop.compile_train(
            devices,
            stage.loss_fn,
            loop.make_prepare(stage.prepare, recipe.augment, per_example),
            stage.make_optimizer(recipe),
            tuple(sorted(stage.weights.items())),
        ),
        recipe=recipe,
        order=loop.Order(
            zlib.crc32(order.encode()), recipe.batch_size, recipe.accumulate, devices.count
        ),
        devices=devices,
        steps_per_call=place.run.steps_per_call,
        pause_every=pauses,
    )


def _frozen_digest(stage: Stage, after: Any) -> str | None:
    """Of the frozen parameters, which must be the same `after` training if steps had them."""
    if stage.frozen is None:
        return None
    before = checkpoint.digest(stage.frozen)
    if after is not None and checkpoint.digest(after) != before:
        raise RuntimeError(f"{stage.name}: the frozen parameters changed during training")
    return before


def _start(stage: Stage, directory: Path, facts: Mapping[str, Any]) -> tuple[step.State, Progress]:
    """The state to go on from, on the host, and what was kept with it."""
    tx = stage.make_optimizer(stage.recipe)
    state = jax.device_get(step.init_state(stage.params, tx))
    leaves, structure = jax.tree.flatten(state)

    def saved() -> tuple[Any, Mapping]:
        found = checkpoint.restore_step(directory, state, facts)
        if found is None:
            return None, {}
        return found[1], {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(found[0]))}

    known, arrays = hosts.share(saved)
    if known is None:
        report.say(f"{stage.name}: {stage.recipe.steps} steps of {stage.recipe.batch_size}")
        return state, Progress()
    report.say(f"{stage.name}: goes on after step {known['step']} of {stage.recipe.steps}")
    return structure.unflatten(arrays[str(i)] for i in range(len(leaves))), Progress.of(known)


def _teacher_table(stage: Stage, frozen: Any, place: Place) -> tuple[Feed, Callable | None]:
    """The teacher's features of every example, computed once, where the inputs never vary.

    The teacher is fixed and, without augmentation, so is its input: a table indexed by
    example is exact. Where inputs vary or the table is too large, steps recompute it.

    Returns:
        The feed, with a resident `target` if there is a table, and the function that
        steps must compute themselves, if not.
    """
    if stage.per_example is None:
        return stage.feed, None
    prepare = loop.make_prepare(stage.prepare, False, None)
    arguments = {"prepare": prepare, "devices": place.devices}
    if stage.recipe.augment:
        report.say(f"{stage.name}: the teacher runs in every step, its inputs are augmented")
        return stage.feed, stage.per_example
    size = loop.example_bytes(stage.per_example, frozen, stage.feed, **arguments)
    if size * len(stage.feed.split) > place.run.resident_gb * 1e9:
        report.say(
            f"{stage.name}: the teacher runs in every step, a table would exceed resident_gb"
        )
        return stage.feed, stage.per_example
    table = loop.map_examples(
        stage.per_example, frozen, stage.feed, rows=place.run.eval_batch_size, **arguments
    )
    resident = {**stage.feed.resident, **place.devices.replicate({"target": table})}
    return stage.feed._replace(resident=resident), None
