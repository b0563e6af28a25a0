"""Dropout that is keyed by what a token is, never by where it stands: packing, device counts and
leaving tokens out change nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def token_keys(key: jax.Array, example: jax.Array, position: jax.Array) -> jax.Array:
    """One random key per token, from (key, example, position in the example).

    Args:
        key: random key.
        example: any shape, int32.
        position: same shape, int32.

    Returns:
        Random keys of that shape.
    """
    draw = lambda e, p: jax.random.fold_in(jax.random.fold_in(key, e), p)
    return _over_all(draw, example.ndim)(example, position)


def dropped(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Zeroes values of x [..., values] and scales up the rest; `keys` [...] is one per row.

    16 random bits per value, two values per word: random bits are most of dropout's cost. So
    the rate is a multiple of 1 / 65536 (0.1 becomes 0.100006), and the scale fits it exactly.
    """
    threshold = min(round(rate * 65536), 65535)
    values = x.shape[-1]
    draw = lambda key: jax.random.bits(key, ((values + 1) // 2,), jnp.uint32)
    words = _over_all(draw, keys.ndim)(keys)
    halves = jnp.stack([words & 0xFFFF, words >> 16], axis=-1)
    halves = halves.reshape(*keys.shape, -1)[..., :values]
    return jnp.where(halves >= threshold, x / (1 - threshold / 65536), jnp.zeros_like(x))


class Dropout(nn.Module):
    """Dropout drawn per (key, example, position)."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, example, position) -> jax.Array:
        """Zeroes values of x [..., dim]; `example` and `position` are [...], int32, what the token
        is: its example's place in the data set and its own in the example."""
        if self.rate == 0:
            return x
        return dropped(x, token_keys(self.make_rng("dropout"), example, position), self.rate)


def _over_all(function, axes: int):
    """The function of scalars, over arrays with that many axes."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function
