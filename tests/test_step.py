"""What one update may and may not depend on. Dropout is on throughout."""

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
BACKBONE = vit_mae.make(tiny_vit.settings(dropout_pretrain=0.3, dropout_finetune=0.3), jnp.float32)
LOSS = algorithm.self_distillation_loss(BACKBONE, "cls")
TEACHER = algorithm.teacher_features(BACKBONE, "cls")
PREPARE = loop.make_prepare(training.PREPARE, False, TEACHER)
WEIGHTS = {"masked": 0.7, "distill": 1.3}
SPLIT = training.waves(21)
REAL = [3, 1, 4, 12, 7]


@pytest.fixture(scope="module")
def init():
    return jax.device_get(BACKBONE.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def teacher():
    return jax.device_get(BACKBONE.init(jax.random.key(1))["encoder"])


@pytest.fixture(scope="module")
def update(init, teacher):
    """(batch, key) -> gradient, metrics: the real step, with gradient descent of rate 1."""
    sgd = optax.sgd(1.0)
    run = jax.jit(partial(step.train_step, loss_fn=LOSS, prepare=PREPARE, tx=sgd, weights=WEIGHTS))

    def run_once(batch, key=training.KEY):
        after, metrics = run(step.init_state(init, sgd), teacher, {}, batch, key)
        return jax.tree.map(jnp.subtract, init, after.params), metrics

    return run_once


def rows(index):
    index = np.array(index, np.int32)
    image, label = (SPLIT.arrays[name][index] for name in ("image", "label"))
    return {"index": index, "image": image.astype(np.float32), "label": label}


def batch(padding=(0, 0, 0), micro_batches=1):
    """One step's batch: the five real examples, then rows of weight 0."""
    weight = np.array([1] * len(REAL) + [0] * len(padding), np.float32)
    flat = {**rows([*REAL, *padding]), "weight": weight}
    stripe = lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1)
    return jax.tree.map(stripe, flat)


def assert_close(actual, expected, tolerance=1e-5):
    """To float32 rounding: relative to the largest value of each array, as sums over examples
    round; to the largest of all (or 1) where an array is nothing but rounding."""
    chex.assert_trees_all_equal_structs(actual, expected)
    floor = min(1.0, max(float(np.max(np.abs(x))) for x in jax.tree.leaves(expected)))

    def check(a, e):
        atol = tolerance * max(floor, float(np.max(np.abs(e))))
        np.testing.assert_allclose(a, e, rtol=0, atol=atol)

    jax.tree.map(check, actual, expected)


@pytest.fixture(scope="module")
def plain(init, teacher):
    """The mean over the real examples without step, weights or padding, and its gradients."""
    _, loss_key = jax.random.split(jax.random.fold_in(training.KEY, 0))

    def objective(params, frozen):
        prepared = PREPARE(frozen, {}, rows(REAL), loss_key)
        means = jax.tree.map(jnp.mean, LOSS(params, frozen, prepared, loss_key))
        return 0.7 * means["masked"] + 1.3 * means["distill"], means

    run = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    (loss, means), gradients = run(init, teacher)
    return {**means, "loss": loss}, gradients


def test_a_padded_batch_gives_the_plain_mean_and_its_gradient(update, plain):
    means, (expected, _) = plain
    gradient, metrics = update(batch())
    assert_close(gradient, expected)
    assert_close(
        metrics,
        {
            **means,
            "grad_norm": optax.tree.norm(expected),
            "examples": metrics["examples"],
            "skipped": np.float32(0),
        },
        1e-4,
    )


def test_what_stands_in_the_padding_changes_no_bit(update):
    chex.assert_trees_all_equal(update(batch((9, 3, 20))), update(batch()))


def test_nan_in_the_padding_does_not_reach_the_losses(update):
    # It does reach the gradient (0 * NaN); padding repeats example 0, so there is none.
    poisoned = batch()
    poisoned["image"][poisoned["weight"] == 0] = np.nan
    (_, bad), (_, clean) = update(poisoned), update(batch())
    for term in ("masked", "distill", "loss"):
        np.testing.assert_array_equal(bad[term], clean[term])


@pytest.fixture(scope="module")
def finetune_update(init):
    """(batch) -> gradient, metrics of fine-tuning, with random flips."""
    params, sgd = jax.device_get(BACKBONE.add_head(init, 3, jax.random.key(2))), optax.sgd(1.0)
    prepare = loop.make_prepare(training.PREPARE, True, None)
    loss = algorithm.finetune_loss(BACKBONE)
    run = jax.jit(partial(step.train_step, loss_fn=loss, prepare=prepare, tx=sgd, weights={}))

    def run_once(batch):
        after, metrics = run(step.init_state(params, sgd), None, {}, batch, training.KEY)
        return jax.tree.map(jnp.subtract, params, after.params), metrics

    return run_once


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulating_changes_no_update(finetune_update, micro_batches):
    # Dropout and flips are drawn by example: the place in a micro-batch does not matter.
    whole, parts = finetune_update(batch()), finetune_update(batch(micro_batches=micro_batches))
    assert_close(parts, whole)


def test_dropout_is_on_in_these_tests(update):
    # Nothing else in the distillation term is random.
    (_, one), (_, other) = update(batch()), update(batch(), jax.random.key(4))
    assert abs(one["distill"] / other["distill"] - 1) > 1e-3


def test_no_gradient_to_the_teacher(plain):
    _, (to_student, to_teacher) = plain
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


def test_every_student_starts_at_the_same_parameters(stage_of_five, init):
    # The state is donated to the compiled step: that must not reach theta_init on the host.
    run, _ = stage_of_five
    before = jax.tree.map(np.copy, init)
    _, first = run(5)
    _, second = run(5)
    chex.assert_trees_all_equal(init, before)
    chex.assert_trees_all_equal(second, first)


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
