"""What one update may and may not depend on. Losses: self-distillation, with dropout."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_vit
import training

from sdfp import algorithm, parallel
from sdfp.models import vit_mae
from sdfp.train import loop, step

DEVICES = parallel.make("jit", 1)
BACKBONE = vit_mae.make(tiny_vit.settings(dropout_pretrain=0.3), jnp.float32)
LOSS = algorithm.self_distillation_loss(BACKBONE, "cls")
TEACHER = algorithm.teacher_features(BACKBONE, "cls")
PREPARE = loop.make_prepare(training.PREPARE, False, TEACHER)
WEIGHTS = {"masked": 0.7, "distill": 1.3}
SPLIT = training.waves(21)
RESIDENT = {"image": jnp.asarray(SPLIT.arrays["image"])}
REAL = [3, 1, 4, 12, 7]


@pytest.fixture(scope="module")
def init():
    return jax.device_get(BACKBONE.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def teacher():
    return jax.device_get(BACKBONE.init(jax.random.key(1))["encoder"])


@pytest.fixture(scope="module")
def gradient(init, teacher):
    """(batch) -> gradient, metrics: the real step with gradient descent, rate 1."""
    run = jax.jit(
        partial(
            step.train_step, loss_fn=LOSS, prepare=PREPARE, tx=optax.sgd(1.0), weights=WEIGHTS
        )
    )
    state = step.init_state(init, optax.sgd(1.0))

    def run_once(batch, resident=RESIDENT):
        after, metrics = run(state, teacher, resident, batch, training.KEY)
        return jax.tree.map(jnp.subtract, init, after.params), metrics

    return run_once


def batch(index, weight=None, micro_batches=1):
    """One step's batch; weight 1 for the examples `index` if not given."""
    index = np.array(index, np.int32).reshape(-1, micro_batches).T
    weight = np.ones(len(index.ravel())) if weight is None else np.array(weight)
    return {"index": index, "weight": weight.astype(np.float32).reshape(-1, micro_batches).T}


PADDED = batch([*REAL, 0, 0, 0], [1] * 5 + [0] * 3)


def assert_close(actual, expected, tolerance=1e-5):
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_padding_changes_neither_losses_nor_gradients(gradient):
    assert_close(gradient(PADDED), gradient(batch(REAL)))


def test_what_stands_in_the_padding_changes_no_bit(gradient):
    chex.assert_trees_all_equal(
        gradient(batch([*REAL, 9, 3, 20], [1] * 5 + [0] * 3)), gradient(PADDED)
    )


def test_the_loss_is_the_plain_mean_over_the_examples(gradient, init, teacher):
    _, loss_key = jax.random.split(jax.random.fold_in(training.KEY, 0))

    @jax.jit
    def plain(params):
        rows = {"image": RESIDENT["image"][jnp.array(REAL)], "index": jnp.array(REAL)}
        rows = training.PREPARE(rows, loss_key, False)
        rows["target"] = BACKBONE.features(teacher, rows, None, False)
        means = jax.tree.map(jnp.mean, LOSS(params, None, rows, loss_key))
        return 0.7 * means["masked"] + 1.3 * means["distill"], means

    (loss, means), expected = jax.jit(jax.value_and_grad(plain, has_aux=True))(init)
    found, metrics = gradient(PADDED)
    assert_close(found, expected)
    assert_close(
        metrics, {**means, "loss": loss, "grad_norm": optax.global_norm(expected)}, 1e-4
    )


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulating_changes_no_update(gradient, micro_batches):
    # Dropout is on: it is drawn by example, so the place in a micro-batch does not matter.
    whole = PADDED["index"][0], PADDED["weight"][0]
    assert_close(gradient(batch(*whole, micro_batches)), gradient(PADDED))


def test_dropout_is_on_in_these_tests(gradient, init, teacher):
    # Otherwise the tests above would say nothing about it.
    _, metrics = gradient(batch(REAL))
    rows = training.PREPARE({"image": RESIDENT["image"][np.array(REAL)]}, None, False)
    rows["index"] = jnp.array(REAL)
    features = jax.jit(lambda encoder: BACKBONE.features(encoder, rows, None, False))
    distance = jnp.sum((features(init["encoder"]) - features(teacher)) ** 2, axis=-1)
    assert abs(metrics["distill"] / jnp.mean(distance) - 1) > 1e-3


def test_nan_in_the_padding_does_not_reach_the_loss(gradient):
    image = SPLIT.arrays["image"][PADDED["index"]].astype(np.float32)
    poisoned = np.where(PADDED["weight"][..., None, None, None] > 0, image, np.nan)
    clean_gradient, clean = gradient({**PADDED, "image": image}, {})
    bad_gradient, bad = gradient({**PADDED, "image": poisoned}, {})
    for term in ("masked", "distill", "loss"):
        np.testing.assert_array_equal(bad[term], clean[term])
    chex.assert_trees_all_equal(bad_gradient, clean_gradient)


def test_no_gradient_to_the_teacher(init, teacher):
    state = step.init_state(init, optax.sgd(1.0))

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(params, frozen):
        start = state._replace(params=params)
        _, metrics = step.train_step(
            start,
            frozen,
            RESIDENT,
            batch(REAL),
            training.KEY,
            loss_fn=LOSS,
            prepare=PREPARE,
            tx=optax.sgd(1.0),
            weights={},
        )
        return metrics["loss"]

    to_student, to_teacher = gradients(init, teacher)
    assert any(map(np.any, jax.tree.leaves(to_student)))
    assert not any(map(np.any, jax.tree.leaves(to_teacher)))


@pytest.fixture(scope="module")
def stage_of_five(init, teacher):
    """(pause_every) -> the state after 5 steps, the metrics; and how often the loss was traced."""
    traces = []

    def loss(*arguments):
        traces.append(1)
        return LOSS(*arguments)

    run = partial(
        training.train,
        DEVICES,
        init,
        loss,
        training.masked(steps=5),
        training.feed(SPLIT, DEVICES),
        frozen=teacher,
        per_example=TEACHER,
        steps_per_call=5,
    )
    return (lambda pause_every: run(pause_every=pause_every)), traces


@pytest.mark.parametrize("pause_every", [1, 2, 3])
def test_a_stage_cut_anywhere_has_the_same_bits(stage_of_five, pause_every):
    run, _ = stage_of_five
    chex.assert_trees_all_equal(run(pause_every), run(5))


def test_one_trace_for_a_stage_and_its_repetition(stage_of_five):
    run, traces = stage_of_five
    run(5)
    first = len(traces)
    assert first == 2  # the shapes of the metrics, and the loop's body
    run(2)
    run(5)
    assert len(traces) == first


def test_every_student_starts_at_the_same_parameters(stage_of_five, init, gradient):
    # The state is donated to the compiled step: that must not reach theta_init on the host.
    run, _ = stage_of_five
    before = jax.tree.map(np.copy, init)
    _, first = run(5)
    _, second = run(5)
    chex.assert_trees_all_equal(init, before)
    chex.assert_trees_all_equal(second, first)
    # And the first loss is theta_init's.
    order = loop.Order(training.ORDER_SEED, 8, 1, 1)
    _, at_init = gradient(order.batch(0, len(SPLIT)))
    np.testing.assert_allclose(first["distill"][0], at_init["distill"], rtol=1e-5)
    np.testing.assert_allclose(first["masked"][0], at_init["masked"], rtol=1e-5)


def test_a_table_of_teacher_features_is_the_teacher(stage_of_five, init, teacher):
    run, _ = stage_of_five
    in_the_step, metrics = run(5)
    feed = training.feed(SPLIT, DEVICES)
    table = loop.map_examples(
        TEACHER,
        teacher,
        feed,
        prepare=loop.make_prepare(training.PREPARE, False, None),
        devices=DEVICES,
        rows=8,
    )
    assert table.shape == (21, 16)
    feed = feed._replace(resident={**feed.resident, "target": jnp.asarray(table)})
    with_table, table_metrics = training.train(
        DEVICES, init, LOSS, training.masked(steps=5), feed, steps_per_call=5
    )
    assert_close(table_metrics, metrics)
    assert_close(with_table.params, in_the_step.params)
