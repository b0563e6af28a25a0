"""Why models/attention.py transposes to heads behind a barrier: against the plain einsum.

    python -m benchmarks.attention

Milliseconds, forward alone and forward with gradients, the fastest of several, alternating.
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sdfp.models.attention import attention

SHAPES = {  # rows, tokens, heads, dim of a head; batch 8 of ViT-B/16
    "encoder, all patches": (8, 197, 12, 64),
    "encoder, visible": (8, 50, 12, 64),
    "decoder": (8, 197, 16, 32),
}
REPEATS = 10


def plain(query, key, value, heads: int) -> jax.Array:
    """The textbook's: XLA is free to fold the transpositions into the products."""
    split = lambda x: x.reshape(*x.shape[:2], heads, -1)
    query, key, value = split(query), split(key), split(value)
    scores = jnp.einsum("rqhd,rkhd->rhqk", query, key) * query.shape[-1] ** -0.5
    mixed = jnp.einsum("rhqk,rkhd->rqhd", jax.nn.softmax(scores, axis=-1), value)
    return mixed.reshape(*mixed.shape[:2], -1)


def milliseconds(function: Callable, *args) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function(*args))
    return 1000 * (time.perf_counter() - began)


def measure(rows: int, tokens: int, heads: int, size: int) -> dict[str, tuple[float, float]]:
    inputs = jax.random.normal(jax.random.key(0), (3, rows, tokens, heads * size))
    programs = {}
    for name, function in (("plain", plain), ("ours", attention)):
        forward = lambda q, k, v, function=function: function(q, k, v, heads)
        loss = lambda q, k, v, forward=forward: jnp.sum(forward(q, k, v) ** 2)
        programs[name] = jax.jit(forward), jax.jit(jax.grad(loss, (0, 1, 2)))
    results = [[jax.block_until_ready(p(*inputs)) for p in pair] for pair in programs.values()]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *results)
    found = {name: ([], []) for name in programs}
    for _ in range(REPEATS):
        for name, pair in programs.items():
            for times, program in zip(found[name], pair, strict=True):
                times.append(milliseconds(program, *inputs))
    return {name: (min(forward), min(both)) for name, (forward, both) in found.items()}


def main() -> None:
    with jax.default_matmul_precision("highest"):
        for where, shape in SHAPES.items():
            for name, (forward, both) in measure(*shape).items():
                print(f"{where:22} {name:6} forward {forward:6.1f}, with gradients {both:6.1f}")


if __name__ == "__main__":
    main()
