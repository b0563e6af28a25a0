"""Multi-head attention, for all model families."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    heads: int,
    together: jax.Array | None = None,
    drop: Callable = lambda weights: weights,
) -> jax.Array:
    """Softmax attention before the output projection; scores and softmax in float32.

    Args:
        query: [rows, queries, dim].
        key: [rows, keys, dim].
        value: [rows, keys, dim].
        heads: `dim` holds one head after the other.
        together: [rows, queries, keys] bool, True where a query sees a key; None: everywhere.
        drop: of the weights [rows, heads, queries, keys], float32.

    Returns:
        [rows, queries, dim].
    """
    query, key, value = (_split(x, heads) for x in (query, key, value))
    scores = jnp.einsum("rhqd,rhkd->rhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if together is not None:
        # The lowest number, not -inf: a padding query sees nothing, and its softmax must not be
        # NaN (nothing reads it, but 0 * NaN in the backward pass is NaN).
        scores = jnp.where(together[:, None], scores, jnp.finfo(scores.dtype).min)
    weights = drop(jax.nn.softmax(scores, axis=-1)).astype(value.dtype)
    return _join(jnp.einsum("rhqk,rhkd->rhqd", weights, value))


def _split(x: jax.Array, heads: int) -> jax.Array:
    """[rows, tokens, dim] -> [rows, heads, tokens, dim of a head].

    The barriers here and in `_join` keep XLA from folding the transposition into the products: on a
    CPU that makes them several times slower (docs/performance.md).
    """
    rows, tokens, dim = x.shape
    split = x.reshape(rows, tokens, heads, dim // heads).transpose(0, 2, 1, 3)
    return jax.lax.optimization_barrier(split)


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_split`."""
    rows, heads, tokens, dim = x.shape
    return jax.lax.optimization_barrier(x).transpose(0, 2, 1, 3).reshape(rows, tokens, heads * dim)
