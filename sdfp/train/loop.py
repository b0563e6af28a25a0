"""The loops over batches: training steps, and one value per example."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from sdfp.data import loading, plan
from sdfp.data.loading import Feed
from sdfp.parallel import Devices
from sdfp.settings import Recipe
from sdfp.train import step as stepping
from sdfp.train.step import State
from sdfp.types import Key

SAMPLED = 256
"""Steps, at least, from which a feed sees what batches will be like."""


def round_up(rows: int, multiple: int) -> int:
    """The next multiple: rows that the devices (and micro-batches) divide evenly."""
    return -(-rows // multiple) * multiple


class Order(NamedTuple):
    """The batch of every step, as a pure function of the step."""

    seed: int
    batch_size: int
    accumulate: int
    devices: int

    def batch(self, step: int, examples: int) -> dict[str, np.ndarray]:
        """`index` and `weight` [micro-batches, rows], padded so that the devices divide rows."""
        rows = round_up(self.batch_size, self.devices * self.accumulate)
        index, weight = plan.train_batch(self.seed, step, examples, self.batch_size, rows)
        # Striped, so that padding spreads over the micro-batches.
        stripes = (rows // self.accumulate, self.accumulate)
        return {"index": index.reshape(stripes).T, "weight": weight.reshape(stripes).T}

    def sample(self, examples: int) -> Iterator[dict[str, np.ndarray]]:
        """Whole epochs of batches like those of a run, but the same ones for every seed: stages
        that differ in the seed alone share compiled programs."""
        epoch = plan.steps_per_epoch(examples, self.batch_size)
        for step in range(-(-SAMPLED // epoch) * epoch):
            yield self._replace(seed=0).batch(step, examples)


@lru_cache
def make_prepare(prepare: Callable, augment: bool, per_example: Callable | None) -> Callable:
    """What a step does to a raw batch: gather rows, normalise, add the teacher's target.

    Cached (as the compiled functions below) so that stages of one shape share a program.
    """

    def prepared(frozen, resident, batch, key):
        batch = prepare(loading.gather(resident, batch), key, augment)
        return {**batch, "target": per_example(frozen, batch)} if per_example else batch

    return prepared


@lru_cache
def compile_train(devices: Devices, loss_fn, prepare, tx, weights: tuple) -> Callable:
    step = partial(
        stepping.train_step, loss_fn=loss_fn, prepare=prepare, tx=tx, weights=dict(weights)
    )
    return devices.compile_train(partial(stepping.train_steps, step=step))


@lru_cache
def compile_map(devices: Devices, fn: Callable, prepare: Callable) -> Callable:
    def mapped(params, resident, batch):
        return fn(params, prepare(params, resident, batch, None))

    return devices.compile_map(mapped)


def train(
    state: State,
    frozen: Any,
    feed: Feed,
    key: Key,
    *,
    compiled: Callable,
    recipe: Recipe,
    order: Order,
    devices: Devices,
    steps_per_call: int,
    pause_every: Sequence[int],
) -> Iterator[tuple[int, State, Mapping[str, np.ndarray]]]:
    """Runs a stage to its last step.

    Args:
        state, frozen: on the devices; `state` is consumed.
        pause_every: calls end at multiples of these step counts, for checkpoints and probes.

    Yields:
        After every call: (steps done, the state on the devices, to be read until the next call,
        metrics [steps]).
    """
    calls = _calls(
        int(devices.fetch(state.step)),
        feed,
        recipe.steps,
        order,
        devices,
        steps_per_call,
        pause_every,
    )
    call = next(calls, None)
    while call:
        done, count, batches = call
        state, metrics = compiled(state, frozen, feed.resident, batches, key, count)
        call = next(calls, None)  # made while the devices compute
        host_metrics = {k: np.asarray(v)[:count] for k, v in devices.fetch(metrics).items()}
        yield done, state, host_metrics


def _calls(
    done: int,
    feed: Feed,
    steps: int,
    order: Order,
    devices: Devices,
    steps_per_call: int,
    pause_every: Sequence[int],
) -> Iterator[tuple[int, int, Any]]:
    """What each call takes, after `done` steps: (steps done behind it, its steps, its batches on
    the devices)."""
    examples = len(feed.split)
    arrange = feed.layout(order.sample(examples), devices.count, complete=False)
    batches = (arrange(order.batch(step, examples)) for step in itertools.count(done))
    waiting = next(batches)
    while done < steps:
        pause = min(steps, *((done // every + 1) * every for every in pause_every))
        call, waiting = _alike(waiting, batches, min(steps_per_call, pause - done))
        count = len(call)
        # Always the full number of batches: another shape would be another program.
        call += call[-1:] * (steps_per_call - count)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *call)
        done += count
        yield done, count, devices.shard(stacked, 2, feed.streamed)


def _alike(first: Mapping, batches: Iterator, most: int) -> tuple[list, Mapping]:
    """`first` and those after it while the shapes stay the same, and the next one."""
    shapes = lambda batch: {name: array.shape for name, array in batch.items()}
    alike, following = [first], next(batches)
    while len(alike) < most and shapes(following) == shapes(first):
        alike.append(following)
        following = next(batches)
    return alike, following


def map_examples(
    fn: Callable, params: Any, feed: Feed, *, prepare: Callable, devices: Devices, rows: int
) -> np.ndarray:
    """`fn(params, batch) -> [examples, ...]` for every example of a split exactly once.

    Args:
        params: on the devices.
        prepare: as in training, without augmentation.
        rows: batch size, rounded up to a multiple of the devices.

    Returns:
        [data set, ...], in the order of the split.
    """
    compiled = compile_map(devices, fn, prepare)
    rows = round_up(min(rows, len(feed.split)), devices.count)
    results = np.empty(0)
    drawn = plan.eval_batches(len(feed.split), rows)
    batches = [{"index": index, "weight": weight} for index, weight in drawn]
    arrange = feed.layout(batches, devices.count, complete=True)
    calls = ((b, devices.shard(b, 0, feed.streamed)) for b in map(arrange, batches))
    call = next(calls, None)
    while call:
        batch, sharded = call
        on_devices = compiled(params, feed.resident, sharded)
        call = next(calls, None)  # made while the devices compute
        index, real = batch["index"], batch["weight"] > 0
        values = devices.gather(on_devices)
        if not results.size:
            results = np.empty((len(feed.split), *values.shape[1:]), values.dtype)
        results[index[real]] = values[real]
    return results


def example_bytes(
    fn: Callable, params: Any, feed: Feed, *, prepare: Callable, devices: Devices
) -> int:
    """Bytes that `map_examples` returns per example, without running it."""
    index, weight = np.zeros(devices.count, np.int32), np.ones(devices.count, np.float32)
    batch = {"index": index, "weight": weight}
    arranged = feed.layout([batch], devices.count, complete=True)(batch)
    compiled = compile_map(devices, fn, prepare)
    sharded = devices.shard(arranged, 0, feed.streamed)
    values = jax.eval_shape(compiled, params, feed.resident, sharded)
    return values.size * values.dtype.itemsize // devices.count
