"""Transformer blocks one after another: parameters stacked over layers, so that one compiled body
serves all of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

SAVED = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def init(block: nn.Module, depth: int) -> Callable:
    """(key, *arguments of the block) -> its parameters `depth` times, each leaf [layers, ...]."""

    def stacked(key: jax.Array, *args) -> Any:
        one = lambda key: block.init(key, *args)["params"]
        return jax.vmap(one)(jax.random.split(key, depth))

    return stacked


def run(
    block: nn.Module,
    params: Any,
    x: jax.Array,
    *args,
    key: jax.Array | None = None,
    read: Callable | None = None,
) -> jax.Array:
    """All blocks, and of the last one only what is read of it.

    What other tokens are in the last block is of no use to anyone, but for their keys and values.

    Args:
        block: (x, *args, read=...) -> x.
        params: leaves [layers, ...].
        x: hidden states, tokens on some axis.
        args: of every block.
        key: of dropout; None where there is none.
        read: array with the axes of tokens -> those of the tokens that are wanted; None for all.

    Returns:
        The last block's x, of what `read` takes.
    """
    depth = jax.tree.leaves(params)[0].shape[0]
    keys = None if key is None else jax.random.split(key, depth)

    def layer(x, number, **how) -> Any:
        at = lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False)
        rngs = None if keys is None else {"dropout": at(keys)}
        return block.apply({"params": jax.tree.map(at, params)}, x, *args, rngs=rngs, **how)

    # The backward pass finds the outputs of a block's projections; what is cheap or large (norms,
    # activations, attention weights) it computes again: less to write, less memory. A layer's
    # parameters are taken within, by its number, so that they are neither copied nor saved.
    @partial(jax.checkpoint, prevent_cse=False, policy=SAVED)
    def step(x, number):
        return layer(x, number), None

    whole = depth if read is None else depth - 1
    x, _ = jax.lax.scan(step, x, jnp.arange(whole))
    return x if read is None else layer(x, depth - 1, read=read)
