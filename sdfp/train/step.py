"""One update of the parameters: pure, and the only place that reduces losses."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdfp.types import Batch, Key, LossFn, Params


class State(NamedTuple):
    """Everything that training changes."""

    step: jax.Array
    params: Params
    opt_state: Any


def init_state(params: Params, tx: optax.GradientTransformation) -> State:
    return State(jnp.zeros((), jnp.int32), params, tx.init(params))


def train_step(
    state: State,
    frozen: Any,
    resident: Mapping[str, jax.Array],
    batch: Batch,
    key: Key,
    *,
    loss_fn: LossFn,
    prepare: Callable,
    tx: optax.GradientTransformation,
    weights: Mapping[str, float],
    summed: Callable = lambda part: part,
) -> tuple[State, dict[str, jax.Array]]:
    """One step: sum over examples of w_i l_i, divided by the sum of w_i over all devices.

    A mean of per-device or per-micro-batch means would weigh the examples of an uneven
    batch unequally; here every term has the same global count.

    Where the objective or the gradient's norm is not finite, the step is skipped: parameters and
    optimiser state stay as they are, bit for bit, and only `state.step` goes on.

    Args:
        frozen: parameters that are read and never trained (a teacher), an explicit argument:
            closing over them would bake them into the compiled program.
        resident: whole data arrays [data set, ...] that stay on the device.
        batch: leaves [micro-batches, examples, ...], with `index` and `weight`.
        key: of the stage; folded with the step here.
        loss_fn: (params, frozen, batch, key) -> {term: [examples]}.
        prepare: (frozen, resident, batch, key) -> batch that `loss_fn` reads.
        weights: factor of each term in the objective; 1 where absent.
        summed: (function of a batch and more) -> the same function, added up over the devices, each
            of which calls it with its own examples (`parallel.Devices.compile_train`).

    Returns:
        The next state and {term: mean, "loss": objective, "grad_norm": global norm over all
        parameters, frozen ones included, "examples": sum of the weights, "skipped": 1 or 0}.
    """
    keys = jax.random.split(jax.random.fold_in(key, state.step))
    count = summed(lambda batch: jnp.sum(batch["weight"]))(batch)
    part = partial(_gradients, loss_fn=loss_fn, prepare=prepare, weights=weights)
    gradient, metrics = summed(part)(batch, state.params, frozen, resident, keys, count)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

    def update() -> tuple[Any, Any]:
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    # A branch: selecting leaf by leaf would hold old and new state side by side.
    params, opt_state = jax.lax.cond(finite, update, lambda: (state.params, state.opt_state))
    metrics = {**metrics, "grad_norm": norm, "examples": count, "skipped": 1.0 - finite}
    return State(state.step + 1, params, opt_state), metrics


def _gradients(
    batch: Batch, params: Params, frozen, resident, keys, count, *, loss_fn, prepare, weights
):
    """One device's part of a step: (gradient, metrics), which add up to those of all devices.

    Args:
        batch: the device's own examples, [micro-batches, examples, ...].
        keys: [2]: of `prepare` and of `loss_fn`.
        count: sum of the weights over all devices.
    """

    def objective(params, micro_batch):
        prepared = prepare(frozen, resident, micro_batch, keys[0])
        terms = loss_fn(params, frozen, prepared, keys[1])
        weight = micro_batch["weight"]
        means = {
            name: jnp.sum(jnp.where(weight > 0, weight * value, 0.0)) / count
            for name, value in terms.items()
        }
        return sum(weights.get(name, 1.0) * mean for name, mean in means.items()), means

    return _sum_of_gradients(objective, params, batch)


def _sum_of_gradients(objective: Callable, params: Params, batch: Batch):
    """(gradient, metrics) of `objective(params, micro_batch)`, added over the micro-batches."""

    def gradient_of(micro_batch):
        (loss, means), gradient = jax.value_and_grad(objective, has_aux=True)(params, micro_batch)
        return gradient, {**means, "loss": loss}

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, gradient_of(micro_batch)), None

    first = jax.tree.map(lambda leaf: leaf[0], batch)
    if batch["weight"].shape[0] == 1:
        return gradient_of(first)
    shapes = jax.eval_shape(gradient_of, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, batch)[0]


def train_steps(
    state: State, frozen, resident, batches: Batch, key: Key, count, *, step: Callable, summed
) -> tuple[State, dict[str, jax.Array]]:
    """The first `count` of the given batches, one after the other, in one dispatch.

    `count` is a run-time value: a stage that is cut anywhere (a checkpoint, its end) runs
    the same compiled program, so cutting it changes no bit.

    Args:
        batches: leaves [steps, micro-batches, examples, ...].
        step: `train_step` with its keyword arguments bound, but `summed`.

    Returns:
        The state and metrics of shape [steps]; entries from `count` on are zero.
    """

    def batch_at(i):
        return jax.tree.map(lambda leaf: leaf[i], batches)

    def one(i, carry):
        state, history = carry
        state, metrics = step(state, frozen, resident, batch_at(i), key, summed=summed)
        return state, jax.tree.map(lambda all_, new: all_.at[i].set(new), history, metrics)

    shapes = jax.eval_shape(
        lambda: step(state, frozen, resident, batch_at(0), key, summed=summed)[1]
    )
    steps = batches["weight"].shape[0]
    history = jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), shapes)
    return jax.lax.fori_loop(0, count, one, (state, history))
