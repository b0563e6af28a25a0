"""Multi-head attention: the plain one, for all model families, and cuDNN's, for those that can."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

FUSED: Literal["cudnn", "xla"] = "cudnn"
"""The implementation behind `fused`, by jax's name; tests without a GPU take the other one."""


class Shape(NamedTuple):
    """What a stack of blocks attends over."""

    tokens: int
    heads: int
    head_dim: int


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


def fused(query: jax.Array, key: jax.Array, value: jax.Array, heads: int) -> jax.Array:
    """`attention` of all tokens to all, in one kernel of cuDNN: no scores in memory.

    It knows neither which tokens may see each other nor dropout of the weights (a mask goes as a
    bias, which takes memory again), so RoBERTa, which needs both, has the plain one.

    Args:
        query, key, value: [rows, tokens, dim], bfloat16.
        heads: `dim` holds one head after the other.

    Returns:
        [rows, tokens, dim].

    Raises:
        RuntimeError: no cuDNN.
        ValueError, NotImplementedError: what it cannot compute, such as a head dimension that is
            no multiple of 8.
    """
    rows, tokens, _ = query.shape
    # jax 0.10.2 takes no bias for one, and so refuses gradients over an odd number of tokens: there
    # one is added that nobody sees.
    odd = tokens % 2
    lengths = jnp.full(rows, tokens, jnp.int32) if odd else None
    padded = (jnp.pad(x, ((0, 0), (0, odd), (0, 0))) for x in (query, key, value))
    by_head = (x.reshape(rows, tokens + odd, heads, -1) for x in padded)
    mixed = jax.nn.dot_product_attention(
        *by_head,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=FUSED,
    )
    return mixed[:, :tokens].reshape(query.shape)


def errors(shape: Shape, rows: int = 2) -> dict[str, tuple[float, float]]:
    """How far `fused` and `attention` in bfloat16 are from `attention` in float32.

    Args:
        rows: of random numbers, as many as tell a wrong result from rounding.

    Returns:
        For the values and the gradients of query, key and value, by name: (error of `fused`, of
        `attention`), each the norm of the difference over that of the true vector, of the worst
        token: one wrong token among many would hide in a mean.

    Raises:
        As `fused`.
    """
    size = (4, rows, shape.tokens, shape.heads * shape.head_dim)
    given = jax.random.normal(jax.random.key(0), size, jnp.bfloat16)

    def results(function: Callable, given: jax.Array, dtype) -> jax.Array:
        *inputs, outer = given.astype(dtype)
        values, pull_back = jax.vjp(lambda *x: function(*x, shape.heads), *inputs)
        return jnp.stack([values, *pull_back(outer)]).astype(jnp.float32)

    def worst(found: jax.Array, true: jax.Array) -> jax.Array:
        norm = lambda x: jnp.sqrt(jnp.sum(x**2, axis=(1, 3)))
        return jnp.max(norm(found - true) / norm(true), axis=1)

    @jax.jit  # the numbers are an argument: of constants the compiler would compute the results
    def compare(given):
        with jax.default_matmul_precision("highest"):
            true = results(attention, given, jnp.float32)
        found = [results(function, given, jnp.bfloat16) for function in (fused, attention)]
        return [worst(one, true) for one in found]

    names = ("values", "gradient of query", "gradient of key", "gradient of value")
    return {name: (float(a), float(b)) for name, a, b in zip(names, *compare(given), strict=True)}


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
