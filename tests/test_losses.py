"""The losses against numbers worked out by hand, and what they must not do."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdfp import losses


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_patch_error_by_hand():
    prediction = jnp.array([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    target = jnp.array([[[1.0, 0.0], [3.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]])
    loss = losses.patch_mean_squared_error(prediction, target)
    np.testing.assert_allclose(loss, [(4 + 9) / 4, 1.0])  # the mean, not the sum, of 4 values


def test_patch_error_over_hidden_patches_is_the_masked_mean_over_all():
    # The published formula: sum over all patches of mask * error, divided by Z.
    prediction, target = normal(3, 6, 4), normal(3, 6, 4, seed=1)
    mask = np.array([1, 0, 1, 0, 0, 1])
    dense = ((prediction - target) ** 2).mean(-1)
    expected = (dense * mask).sum(-1) / mask.sum()
    hidden = np.flatnonzero(mask)
    loss = losses.patch_mean_squared_error(prediction[:, hidden], target[:, hidden])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_squared_distance_by_hand():
    student, teacher = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([[3.0, 2.0], [1.0, -3.0]])
    np.testing.assert_allclose(losses.squared_distance(student, teacher), [4.0, 10.0])  # the sum


def test_all_tokens_have_the_scale_of_one():
    student, teacher = normal(4, 8), normal(4, 8, seed=1)
    one = losses.squared_distance(student, teacher)
    repeated = [np.repeat(x[:, None], 5, axis=1) for x in (student, teacher)]
    np.testing.assert_allclose(losses.squared_distance(*repeated), one, rtol=1e-6)
    # Tokens are averaged, not picked: a distance in one of five tokens counts a fifth.
    repeated[0][:, 1:] = repeated[1][:, 1:]
    np.testing.assert_allclose(losses.squared_distance(*repeated), one / 5, rtol=1e-6)


def test_cross_entropy_by_hand():
    logits = jnp.array([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    expected = [np.log(4), np.log(np.exp([1, 2, 3, 4]).sum()) - 2]
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([3, 1])), expected, rtol=1e-6)


def test_cross_entropy_of_huge_logits_is_finite():
    logits = jnp.array([[1e4, 0.0], [1e4, 0.0]])
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([0, 1])), [0.0, 1e4])


def test_values_are_per_example():
    x, y = normal(5, 3, 4), normal(5, 3, 4, seed=1)
    label = jnp.array([0, 3, 1, 2, 0])
    for loss, arguments in [
        (losses.patch_mean_squared_error, (x, y)),
        (losses.squared_distance, (x, y)),
        (losses.squared_distance, (x[:, 0], y[:, 0])),
        (losses.cross_entropy, (x[:, 0], label)),
    ]:
        together = loss(*arguments)
        chex.assert_shape(together, (5,))
        alone = [loss(*(a[i : i + 1] for a in arguments))[0] for i in range(5)]
        np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-6)


def test_gradients_by_hand():
    x, y = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    gradient = jax.grad(lambda x: losses.patch_mean_squared_error(x, y).sum())(x)
    np.testing.assert_allclose(gradient, 2 * (x - y) / 12, rtol=1e-5)
    gradient = jax.grad(lambda x: losses.squared_distance(x, y[:, 0]).sum())(x[:, 0])
    np.testing.assert_allclose(gradient, 2 * (x - y)[:, 0], rtol=1e-5)
    label = jnp.array([2, 0])
    gradient = jax.grad(lambda x: losses.cross_entropy(x, label).sum())(x[:, 0])
    expected = jax.nn.softmax(x[:, 0]) - jax.nn.one_hot(label, 4)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_the_teacher_gets_no_gradient(shape):
    student, teacher = normal(*shape), normal(*shape, seed=1)
    distance = lambda student, teacher: losses.squared_distance(student, teacher).sum()
    to_student, to_teacher = jax.grad(distance, argnums=(0, 1))(student, teacher)
    assert np.all(to_student != 0)
    assert np.all(to_teacher == 0)


def test_float32_inside_for_bfloat16_inputs():
    # 0.5 and 1024 terms of 0.25 are exact in bfloat16, their running sum is not: it stops at 64.
    x, y = jnp.full((2, 4, 1024), 0.5, jnp.bfloat16), jnp.zeros((2, 4, 1024), jnp.bfloat16)
    for loss, expected in [
        (losses.patch_mean_squared_error(x, y), 0.25),
        (losses.squared_distance(x, y), 256.0),
        (losses.squared_distance(x[:, 0], y[:, 0]), 256.0),
        (losses.cross_entropy(x[:, 0], jnp.zeros(2, jnp.int32)), np.log(1024)),
    ]:
        chex.assert_type(loss, jnp.float32)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_difference_is_taken_in_float32():
    # 1.0 is no multiple of what bfloat16 resolves near 256 (2): a bfloat16 difference is wrong.
    student, teacher = jnp.full((1, 3), 256, jnp.bfloat16), jnp.full((1, 3), 1.0078125, jnp.float32)
    np.testing.assert_allclose(
        losses.squared_distance(student, teacher), 3 * (256 - 1.0078125) ** 2, rtol=1e-6
    )


X = jnp.zeros((2, 3, 4))


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        (losses.patch_mean_squared_error, (X, X[:, :2])),
        (losses.patch_mean_squared_error, (X, X[:1])),  # would broadcast
        (losses.patch_mean_squared_error, (X[0], X[0])),
        (losses.squared_distance, (X, X[:, :1])),  # would broadcast
        (losses.squared_distance, (X, X[:, 0])),
        (losses.squared_distance, (X[0, 0], X[0, 0])),
        (losses.squared_distance, (X[None], X[None])),
        (losses.cross_entropy, (X[0], jnp.zeros(2, int))),
        (losses.cross_entropy, (X, jnp.zeros(2, int))),
        (losses.cross_entropy, (X[0], jnp.zeros((3, 1), int))),
        (losses.cross_entropy, (X[0], jnp.zeros(3))),
    ],
)
def test_shapes_and_types_that_do_not_fit_raise(loss, arguments):
    with pytest.raises(AssertionError):
        loss(*arguments)
    with pytest.raises(AssertionError):  # also inside a compiled function
        jax.jit(loss)(*arguments)


def test_squared_distance_of_unequal_lengths():
    """The mean over the tokens that there are, of values and of gradients."""
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    length = np.array([5, 1, 3])
    real = np.arange(5) < length[:, None]
    student, teacher = (np.where(real[..., None], x, 0) for x in (student, teacher))
    found = losses.squared_distance(student, teacher, length)
    each = np.stack(
        [
            losses.squared_distance(student[i : i + 1, :n], teacher[i : i + 1, :n])[0]
            for i, n in enumerate(length)
        ]
    )
    np.testing.assert_allclose(found, each, rtol=1e-6)
    cls = losses.squared_distance(student[:, 0], teacher[:, 0], length)
    np.testing.assert_allclose(cls, losses.squared_distance(student[:, 0], teacher[:, 0]))
    with pytest.raises(AssertionError):
        losses.squared_distance(student, teacher, length[:2])


def test_soft_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    target = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    expected = [0.5 * np.log(2) + 0.5 * np.log(4), -np.log(0.7)]
    np.testing.assert_allclose(losses.soft_cross_entropy(logits, target), expected, rtol=1e-6)
    label = jnp.array([2, 0])
    hard = losses.soft_cross_entropy(logits, jax.nn.one_hot(label, 3))
    np.testing.assert_allclose(hard, losses.cross_entropy(logits, label), rtol=1e-6)


def test_kl_divergence_by_hand():
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.125, 0.75, 0.125]])
    expected = 0.5 * np.log(4) + 0.25 * np.log(1 / 3) + 0.25 * np.log(2)
    kl = losses.kl_divergence(jnp.log(p) + 3, jnp.log(q) - 5)  # of logits only differences count
    np.testing.assert_allclose(kl, [expected], rtol=1e-5)
    # The temperature divides both: twice the logits at temperature 2 are the same.
    np.testing.assert_allclose(losses.kl_divergence(2 * jnp.log(p), 2 * jnp.log(q), 2.0), kl, 1e-5)
    np.testing.assert_array_equal(losses.kl_divergence(jnp.log(p), jnp.log(p)), [0])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradients_of_distributions_by_hand(temperature):
    z, reference = normal(4, 5), normal(4, 5, seed=1)
    p, q = jax.nn.softmax(reference / temperature), jax.nn.softmax(z / temperature)
    slope = jax.grad(lambda z: losses.soft_cross_entropy(z, p).sum())(z)
    np.testing.assert_allclose(slope, jax.nn.softmax(z) - p, atol=1e-6)
    kl = lambda reference, z: losses.kl_divergence(reference, z, temperature).sum()
    to_reference, to_z = jax.grad(kl, argnums=(0, 1))(reference, z)
    np.testing.assert_allclose(to_z, (q - p) / temperature, atol=1e-6)
    ratio = jnp.log(p / q)
    expected = p * (ratio - jnp.sum(p * ratio, axis=-1, keepdims=True)) / temperature
    np.testing.assert_allclose(to_reference, expected, atol=1e-6)


@pytest.mark.parametrize("loss", [losses.soft_cross_entropy, losses.kl_divergence])
def test_losses_of_distributions_are_per_example_and_strict(loss):
    first, second = normal(5, 4), normal(5, 4, seed=1)
    together = loss(first, second)
    chex.assert_shape(together, (5,))
    alone = [loss(first[i : i + 1], second[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=1e-5)
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (first, second)]
    chex.assert_type(loss(*rounded), jnp.float32)
    exact = loss(*(x.astype(jnp.float32) for x in rounded))
    np.testing.assert_allclose(loss(*rounded), exact, rtol=1e-6)
    huge = jnp.array([[1e4, 0.0]])
    assert np.all(np.isfinite(loss(huge, huge)))
    for wrong in [(first, second[:, :3]), (first, second[:1]), (first[0], second[0])]:
        with pytest.raises(AssertionError):
            loss(*wrong)
        with pytest.raises(AssertionError):
            jax.jit(loss)(*wrong)
