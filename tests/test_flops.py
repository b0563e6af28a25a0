"""The counter of the benchmarks, against formulas and against XLA's own count."""

import jax
import jax.numpy as jnp
import tiny_vit

from benchmarks import flops
from sdfp import algorithm
from sdfp.models import vit_mae

A, B = jnp.ones((8, 16)), jnp.ones((16, 4))


def count(fn, *args):
    return flops.matmul_flops(jax.make_jaxpr(fn)(*args))


def test_products_are_counted():
    once = 2 * 8 * 16 * 4
    assert count(jnp.matmul, A, B) == once
    assert count(jax.jit(lambda a, b: jnp.tanh(a @ b) + 1), A, B) == once
    assert (
        count(
            lambda a, b: jnp.einsum("nij,njk->nik", a, b),
            jnp.ones((5, 8, 16)),
            jnp.ones((5, 16, 4)),
        )
        == 5 * once
    )
    assert count(jax.grad(lambda b, a: jnp.sum(a @ b)), B, A) == 2 * once  # forward, and of b


def test_loops_and_branches():
    square = jnp.ones((8, 8))
    once = 2 * 8**3
    scanned = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=6)[0]
    assert count(scanned, square) == 6 * once
    steps = lambda x, n: jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)
    assert count(steps, square, 3) == once
    branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)
    assert count(branch, square) == 2 * once


def test_a_training_loss_as_xla_counts_it():
    """Of one block each, as XLA counts a scan's body once. Its count has all operations: at this
    width, a tenth more than the products."""
    sizes = {"dim": 128, "mlp_dim": 512, "decoder_dim": 64, "decoder_mlp_dim": 256, "depth": 1}
    backbone = vit_mae.make(tiny_vit.settings(**sizes), jnp.float32)
    params, batch = backbone.init(jax.random.key(0)), tiny_vit.batch(examples=8)

    def loss(params):
        terms = algorithm.masked_loss(backbone)(params, None, batch, jax.random.key(0))
        return jnp.sum(terms["masked"])

    found = count(jax.grad(loss), params)
    expected = jax.jit(jax.grad(loss)).lower(params).cost_analysis()["flops"]
    assert 0.85 < found / expected <= 1.0


def test_bytes_and_kind_of_a_product():
    """What benchmarks/roofline.py tells the products by."""
    weights = jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 4)))
    (one,) = weights.jaxpr.eqns
    assert flops.moved_bytes(one) == 4 * (6 + 12 + 8)
    assert not flops.batched(one)
    batch = jax.make_jaxpr(jnp.matmul)(jnp.ones((5, 2, 3)), jnp.ones((5, 3, 4)))
    assert flops.total(batch, lambda product: 1 if flops.batched(product) else 0) == 1
    assert flops.total(batch, flops.moved_bytes) == 4 * 5 * (6 + 12 + 8)
