"""Per-example losses: arrays in, [examples] out, in float32. Only the training step reduces."""

import chex
import jax
import jax.numpy as jnp


def patch_mean_squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Masked auto-encoding under a Gaussian likelihood: mean squared error of hidden patches.

    Every image hides the same number of patches Z, so the mean over an example's hidden
    patches is the paper's sum divided by Z.

    Args:
        prediction: [examples, hidden patches, pixels of a patch], hidden positions only.
        target: same shape.

    Returns:
        [examples].

    Raises:
        AssertionError: shapes differ or are not of rank 3.

    References: Lee et al. 2023, Eq. 1; He et al. 2022 (MAE), section 3.
    """
    chex.assert_rank(prediction, 3)
    chex.assert_equal_shape([prediction, target])
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(jnp.square(error), axis=(1, 2))


def squared_distance(
    student: jax.Array, teacher: jax.Array, length: jax.Array | None = None
) -> jax.Array:
    """Self-distillation: squared Euclidean distance of hidden states.

    Summed over the feature dimensions and, for one vector per token, averaged over the
    tokens, so that both forms have the same scale. The teacher gets no gradient.

    Args:
        student: [examples, dim] or [examples, tokens, dim].
        teacher: same shape.
        length: [examples], where examples have unequal numbers of tokens: theirs. What stands
            behind an example's last token is 0 in both.

    Returns:
        [examples].

    Raises:
        AssertionError: shapes differ, or the rank is neither 2 nor 3.

    References: Lee et al. 2023, Eq. 3 and Appendix C.
    """
    chex.assert_rank(student, {2, 3})
    chex.assert_equal_shape([student, teacher])
    error = student.astype(jnp.float32) - jax.lax.stop_gradient(teacher).astype(jnp.float32)
    distance = jnp.sum(jnp.square(error), axis=-1)
    if distance.ndim == 1:
        return distance
    if length is None:
        return jnp.mean(distance, axis=1)
    chex.assert_shape(length, distance.shape[:1])
    return jnp.sum(distance, axis=1) / length


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Softmax cross-entropy with integer labels.

    Args:
        logits: [examples, classes].
        label: [examples], integers in [0, classes). Checked on the host when data is read:
            inside a compiled step a label outside the range cannot raise.

    Returns:
        [examples], in nats.

    Raises:
        AssertionError: ranks or leading sizes do not fit, labels are not integers.

    References: Lee et al. 2023, section 3.1 (fine-tuning objective).
    """
    chex.assert_rank([logits, label], [2, 1])
    chex.assert_equal_shape_prefix([logits, label], 1)
    chex.assert_type(label, int)
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(log_probability, label[:, None], axis=-1)[:, 0]


def soft_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Softmax cross-entropy with a distribution over the classes as the target.

    Args:
        logits: [examples, classes].
        target: same shape; each row sums to 1.

    Returns:
        [examples], in nats.

    Raises:
        AssertionError: shapes differ or are not of rank 2.

    References: Szegedy et al. 2016, section 7 (label smoothing).
    """
    chex.assert_rank(logits, 2)
    chex.assert_equal_shape([logits, target])
    log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(target.astype(jnp.float32) * log_probability, axis=-1)


def kl_divergence(reference: jax.Array, logits: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(softmax(reference / T) || softmax(logits / T)), summed over the classes.

    Gradients flow into both arguments: stop that of a teacher where it is made.

    Args:
        reference: logits [examples, classes].
        logits: same shape.
        temperature: T above 0.

    Returns:
        [examples], in nats.

    Raises:
        AssertionError: shapes differ or are not of rank 2.

    References: Hinton et al. 2015, section 2.
    """
    chex.assert_rank(reference, 2)
    chex.assert_equal_shape([reference, logits])
    log_p = jax.nn.log_softmax(reference.astype(jnp.float32) / temperature, axis=-1)
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
