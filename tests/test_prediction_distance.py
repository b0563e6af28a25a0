"""How far two predictions of one mask are apart, per family: values, gradients, what counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tiny_roberta
import tiny_vit

from sdfp.models import roberta, vit_mae

VIT = vit_mae.make(tiny_vit.settings(), jnp.float32)
ROBERTA = roberta.make(tiny_roberta.settings(), jnp.float32)
PACKED = tiny_roberta.batch(tiny_roberta.PACKED)
KEY = jax.random.key(3)  # masks words of every document that has some
EMPTY = 4
"""The document without a word: nothing of it is ever masked."""


def normal(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def case(family):
    """backbone, batch, mask and two unequal predictions under it."""
    if family == "vit":
        batch = tiny_vit.batch()
        shape = (3, 12, 48)
        return VIT, batch, VIT.mask(batch, KEY), normal(shape, 0), normal(shape, 1)
    mask = ROBERTA.mask(PACKED, KEY)
    assert 0 < mask.valid.sum() < mask.valid.size
    shape = (mask.valid.size, 40)
    return ROBERTA, PACKED, mask, 2 * normal(shape, 0), 2 * normal(shape, 1)


def mean_kl(teacher, student, batch, mask):
    """KL(teacher || student) in float64, document by document."""
    log_p = scipy.special.log_softmax(np.float64(teacher), axis=-1)
    log_q = scipy.special.log_softmax(np.float64(student), axis=-1)
    kl = scipy.special.rel_entr(np.exp(log_p), np.exp(log_q)).sum(-1)
    row, column, valid = map(np.asarray, (mask.row, mask.column, mask.valid))
    document = np.where(valid, np.asarray(batch["document"])[row, column], -1)
    examples = range(len(batch["index"]))
    return np.array([kl[document == i].mean() if (document == i).any() else 0 for i in examples])


def test_squared_error_by_hand():
    student = jnp.array([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    teacher = jnp.array([[[1.0, 0.0], [3.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]])
    found = VIT.prediction_distance(student, teacher, None, None)
    np.testing.assert_allclose(found, [(4 + 9) / 4, 1.0])


def test_kl_by_hand():
    """At one masked word of the one document; the other direction has another value."""
    mask = roberta.Mask(
        tokens=jnp.full((1, 4), 39),
        **{name: jnp.array([2, 0]) for name in ("row", "column", "target")},
        example=jnp.zeros(2, jnp.int32),
        valid=jnp.array([True, False]),
        overflow=jnp.int32(0),
    )
    teacher = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]))
    student = jnp.log(jnp.array([[0.125, 0.125, 0.75], [0.05, 0.05, 0.9]]))
    found = ROBERTA.prediction_distance(student, teacher, {"index": jnp.zeros(1)}, mask)
    np.testing.assert_allclose(found, [1.25 * np.log(2) - 0.25 * np.log(3)], rtol=1e-6)


def test_values_of_random_predictions():
    backbone, batch, mask, student, teacher = case("vit")
    expected = ((np.float64(student) - teacher) ** 2).mean((1, 2))
    found = backbone.prediction_distance(student, teacher, batch, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    backbone, batch, mask, student, teacher = case("roberta")
    expected = mean_kl(teacher, student, batch, mask)
    found = backbone.prediction_distance(student, teacher, batch, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    other_way = mean_kl(student, teacher, batch, mask)
    assert np.max(np.abs(other_way / np.where(expected, expected, 1) - 1)) > 1e-2


@pytest.mark.parametrize("family", ["vit", "roberta"])
def test_equal_predictions_are_not_apart(family):
    backbone, batch, mask, prediction, _ = case(family)
    distance = lambda student: backbone.prediction_distance(student, prediction, batch, mask)
    np.testing.assert_array_equal(distance(prediction), 0)
    gradient = jax.grad(lambda student: distance(student).sum())(prediction)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("family", ["vit", "roberta"])
def test_no_gradient_into_the_teacher(family):
    backbone, batch, mask, student, teacher = case(family)
    distance = lambda *both: backbone.prediction_distance(*both, batch, mask).sum()
    to_student, to_teacher = jax.grad(distance, argnums=(0, 1))(student, teacher)
    assert np.all(np.isfinite(to_student))
    assert np.any(to_student)
    np.testing.assert_array_equal(to_teacher, 0)


def test_free_slots_do_not_count():
    backbone, batch, mask, student, teacher = case("roberta")
    distance = lambda student, teacher: backbone.prediction_distance(student, teacher, batch, mask)
    noise = 100 * normal(student.shape, 2)
    elsewhere = [np.where(mask.valid[:, None], x, noise * x) for x in (student, teacher)]
    np.testing.assert_array_equal(distance(*elsewhere), distance(student, teacher))
    gradient = np.asarray(jax.grad(lambda student: distance(student, teacher).sum())(student))
    used = np.abs(gradient).max(-1) > 0
    np.testing.assert_array_equal(used, mask.valid)


def test_nothing_masked_is_no_distance():
    backbone, batch, mask, student, teacher = case("roberta")
    found = np.asarray(backbone.prediction_distance(student, teacher, batch, mask))
    assert found[EMPTY] == 0
    assert np.all(np.delete(found, EMPTY) > 0)
    none = mask._replace(valid=jnp.zeros_like(mask.valid))
    distance = lambda student: backbone.prediction_distance(student, teacher, batch, none).sum()
    value, gradient = jax.value_and_grad(distance)(student)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_masked_words_without_a_slot_are_not_dropped_silently():
    backbone, batch, mask, student, teacher = case("roberta")
    full = mask._replace(overflow=jnp.int32(1))
    assert np.all(np.isnan(backbone.prediction_distance(student, teacher, batch, full)))


def test_packing_changes_no_distance():
    """Two models' predictions, the documents alone in their rows or together."""
    params, teacher = (ROBERTA.init(jax.random.key(seed)) for seed in (0, 1))
    # From scratch all words are about as likely: embeddings ten times as large tell them apart.
    teacher["encoder"]["word"] = jax.tree.map(lambda x: 10 * x, teacher["encoder"]["word"])

    @jax.jit
    def distance(batch):
        mask = ROBERTA.mask(batch, KEY)
        both = [ROBERTA.reconstruct(each, batch, mask, None, False) for each in (params, teacher)]
        return ROBERTA.prediction_distance(*both, batch, mask)

    alone, packed = distance(tiny_roberta.batch()), distance(PACKED)
    assert alone[:EMPTY].min() > 1e-2
    np.testing.assert_allclose(packed, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("family", ["vit", "roberta"])
def test_gradients_are_torchs(family):
    torch = pytest.importorskip("torch")
    backbone, batch, mask, student, teacher = case(family)
    rng = np.random.default_rng(3)
    weight = rng.uniform(0.5, 2, len(batch["index"])).astype(np.float32)
    distance = lambda x: (weight * backbone.prediction_distance(x, teacher, batch, mask)).sum()
    ours = jax.grad(distance)(student)

    theirs = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    fixed = torch.tensor(teacher, dtype=torch.float64)
    if family == "vit":
        error = torch.nn.functional.mse_loss(theirs, fixed, reduction="none").mean((1, 2))
    else:
        log_p, log_q = fixed.log_softmax(-1), theirs.log_softmax(-1)
        kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        chosen = np.asarray(mask.valid)
        place = torch.tensor(np.asarray(mask.example)[chosen], dtype=torch.long)
        count = torch.bincount(place, minlength=len(weight)).clamp(min=1)
        error = torch.zeros(len(weight), dtype=torch.float64)
        error = error.index_add(0, place, kl[torch.tensor(chosen)]) / count
    (torch.tensor(weight) * error).sum().backward()
    np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=1e-5, atol=1e-6)
