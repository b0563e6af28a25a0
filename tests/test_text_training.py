"""The real loops on packed documents: cut anywhere, the teacher's table, evaluation."""

import jax
import numpy as np
import pytest
import text_training
import training
from jax.flatten_util import ravel_pytree

from sdfp import algorithm, parallel
from sdfp.data import loading
from sdfp.data.interface import Split
from sdfp.train import evaluation, loop

DEVICES = parallel.make("jit", 1)
SPLIT = text_training.documents(42)  # batches of 16, 16 and 10: two row counts at least
BACKBONE = text_training.backbone(depth=1)
TOKENS = 18


@pytest.fixture(scope="module")
def init():
    return jax.device_get(BACKBONE.init(jax.random.key(0)))


def train(init, tokens="cls", table=None, steps=6, **changes):
    """A stage of self-distillation; the teacher in every step, or its table."""
    feed = training.feed(SPLIT, DEVICES)
    per_example = algorithm.teacher_features(BACKBONE, tokens)
    if table is not None:
        resident = {**feed.resident, **DEVICES.replicate({"target": table})}
        feed, per_example = feed._replace(resident=resident), None
    state, metrics = training.train(
        DEVICES,
        init,
        algorithm.self_distillation_loss(BACKBONE, tokens),
        training.masked(batch_size=16, frozen=(), steps=steps),
        feed,
        frozen=init["encoder"],
        per_example=per_example,
        prepare=text_training.PREPARE,
        **changes,
    )
    return np.asarray(ravel_pytree(state.params)[0]), metrics


@pytest.mark.slow  # test_step.py has it of images
def test_calls_may_end_anywhere(init, monkeypatch):
    """A call takes steps of one shape only; where it ends changes no bit."""
    counts = []
    compiled = loop.compile_train

    def counting(*arguments):
        run = compiled(*arguments)
        return lambda *call: (counts.append((call[3]["tokens"].shape[2], call[5])), run(*call))[1]

    monkeypatch.setattr(loop, "compile_train", counting)
    expected, metrics = train(init, steps_per_call=3)
    assert sum(count for _, count in counts) == 6
    assert len({rows for rows, _ in counts}) > 1
    assert metrics["loss"].shape == (6,)
    for change in ({"pause_every": 1}, {"pause_every": 2}):
        params, again = train(init, steps_per_call=3, **change)
        np.testing.assert_array_equal(params, expected)
        np.testing.assert_array_equal(again["loss"], metrics["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_the_teachers_table_is_what_it_computes_in_every_step(init, tokens):
    """The table is made with other packing than the steps have."""
    table = loop.map_examples(
        algorithm.teacher_features(BACKBONE, tokens),
        init["encoder"],
        training.feed(SPLIT, DEVICES),
        prepare=loop.make_prepare(text_training.PREPARE, False, None),
        devices=DEVICES,
        rows=5,
    )
    assert table.shape == ((42, 16) if tokens == "cls" else (42, TOKENS, 16))
    params, metrics = train(init, tokens=tokens, table=table, steps=2)
    expected, reference = train(init, tokens=tokens, steps=2)
    assert metrics["distill"].min() > 0
    np.testing.assert_allclose(metrics["distill"], reference["distill"], rtol=1e-4)
    np.testing.assert_allclose(params, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_texts_that_do_not_fit_on_the_device_give_the_same(init):
    """Labels then travel with each batch; tokens always do."""
    head = jax.device_get(BACKBONE.add_head(init, 3, jax.random.key(2)))
    found = []
    for resident_gb in (0.0, 1.0):
        feed = loading.open_feed(SPLIT, DEVICES, resident_gb)
        assert bool(feed.resident) == bool(resident_gb)
        state, _ = training.train(
            DEVICES,
            head,
            algorithm.finetune_loss(BACKBONE),
            training.finetune(batch_size=16, augment=False, steps=2, warmup_steps=1),
            feed,
            prepare=text_training.PREPARE,
        )
        found.append(np.asarray(ravel_pytree(state.params)[0]))
    np.testing.assert_array_equal(*found)


def test_evaluation_does_not_depend_on_company(init):
    """Each document alone, in another order, in batches of any size."""
    head = jax.device_get(BACKBONE.add_head(init, 3, jax.random.key(2)))
    far = {**head, "head": jax.tree.map(lambda leaf: 30 * leaf, head["head"])}
    how = {"backbone": BACKBONE, "prepare": text_training.PREPARE, "devices": DEVICES}

    def evaluate(rows, order):
        arrays = {name: array[order] for name, array in SPLIT.arrays.items()}
        feed = training.feed(Split(arrays, tuple(map(str, order))), DEVICES)
        return evaluation.log_probabilities(far, feed, rows=rows, **how)

    expected = evaluate(1, np.arange(12))
    for rows in (5, 12):
        order = np.random.default_rng(rows).permutation(12)
        np.testing.assert_allclose(evaluate(rows, order), expected[order], rtol=1e-5, atol=1e-6)
    assert np.ptp(expected, axis=0).min() > 1e-3


def test_measures_agree_with_scikit_learn_and_with_hand_counts():
    """Against the definitions, class by class."""
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(5, size=(2, 200))
    log_probability = np.log(0.9 * np.eye(6)[predicted] + 0.1 / 6)  # the class 5 never occurs
    found = evaluation.measure(log_probability, label)
    f1 = []
    for name in range(5):
        true = ((label == name) & (predicted == name)).sum()
        f1.append(2 * true / ((label == name).sum() + (predicted == name).sum()))
    assert found["macro_f1"] == pytest.approx(100 * np.mean(f1))
    assert found["micro_f1"] == pytest.approx(100 * (label == predicted).mean())
    assert found["accuracy"] == pytest.approx(found["micro_f1"])
