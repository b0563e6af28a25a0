"""Leaving out what nobody reads changes no value and no gradient, and is less work."""

import chex
import jax
import jax.numpy as jnp
import pytest
import tiny_roberta
import tiny_vit

from benchmarks import flops
from sdfp.models import roberta_modules, stack, vit_modules

KEY = jax.random.key(5)
DEPTH, DIM = 3, 16
VIT = tiny_vit.settings(dropout_finetune=0.2)
ROBERTA = tiny_roberta.settings(dim=DIM)


def vit():
    """A block with dropout, what it takes beside x, and readers of its last tokens."""
    example, position = jnp.broadcast_arrays(jnp.arange(4)[:, None], jnp.arange(9)[None])
    block = vit_modules.Block(VIT.heads, VIT.mlp_dim, 1e-6, True, 0.2, jnp.float32)
    readers = (lambda tokens: tokens[:, :1], lambda tokens: tokens[:, -3:])
    return block, vit_modules.Places(example, position), readers


def roberta():
    """Rows of two documents and some padding."""
    row = jnp.arange(9)
    segment = jnp.broadcast_to(jnp.where(row < 4, 1, jnp.where(row < 8, 2, 0)), (4, 9))
    example = jnp.arange(4)[:, None] * 2 + segment
    position = jnp.broadcast_to(jnp.where(row < 4, row, row - 4), (4, 9))
    block = roberta_modules.Block(ROBERTA, 0.2, 0.3, jnp.float32)
    slots = jnp.array([0, 3, 3, 1]), jnp.array([0, 2, 7, 5])
    return block, roberta_modules.Places(example, position, segment), (lambda x: x[slots],)


@pytest.mark.parametrize("make", [pytest.param(vit, marks=pytest.mark.slow), roberta])
def test_what_is_read_is_that_of_whole_blocks(make):
    block, places, readers = make()
    x = jax.random.normal(KEY, (4, 9, DIM))
    params = stack.init(block, DEPTH)(KEY, x, places)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(KEY, leaf.shape), params)

    def whole(params, x, read):
        return read(stack.run(block, params, x, places, key=KEY))

    def part(params, x, read):
        return stack.run(block, params, x, places, key=KEY, read=read)

    def of(run, read):
        def loss(params, x):
            out = run(params, x, read)
            return jnp.sum(out * jnp.cos(jnp.arange(out.size).reshape(out.shape))), out

        return jax.value_and_grad(loss, (0, 1), has_aux=True)

    for read in readers:
        expected, found = (jax.jit(of(run, read))(params, x) for run in (whole, part))
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)
        work = [
            flops.matmul_flops(jax.make_jaxpr(of(run, read))(params, x)) for run in (whole, part)
        ]
        assert work[1] < 0.9 * work[0]


def test_layers_one_after_another():
    """With parameters and dropout of their own, values and gradients; what is large or cheap is
    computed again."""
    block, places, _ = vit()
    x = jax.random.normal(KEY, (4, 9, DIM))
    params = stack.init(block, DEPTH)(KEY, x, places)

    def by_hand(params):
        y = x
        for number, key in enumerate(jax.random.split(KEY, DEPTH)):
            layer = jax.tree.map(lambda leaf: leaf[number], params)  # noqa: B023
            y = block.apply({"params": layer}, y, places, rngs={"dropout": key})
        return jnp.sum(jnp.sin(y)), y

    def run(params, order=slice(None)):
        turned = jax.tree.map(lambda leaf: leaf[order], params)
        y = stack.run(block, turned, x, places, key=KEY)
        return jnp.sum(jnp.sin(y)), y

    expected = jax.value_and_grad(by_hand, has_aux=True)(params)
    gradient = jax.value_and_grad(run, has_aux=True)
    chex.assert_trees_all_close(gradient(params), expected, rtol=1e-5, atol=1e-5)
    assert not jnp.allclose(run(params, slice(None, None, -1))[1], expected[0][1], atol=1e-3)
    assert "remat" in str(jax.make_jaxpr(gradient)(params))
