"""What sdfp tells XLA about memory reaches the compiler, and the user's own flags win."""

import functools
import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from sdfp import parallel

def loss(weights, x):
    layer = lambda x, weight: (jnp.tanh(x @ weight), None)
    return jnp.sum(jax.lax.scan(layer, x, weights)[0] ** 2)

def both(weights, x):
    return loss(weights, x) + loss(weights, 2 * x)

weights, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(8, 64, 64), (4096, 64)])
compiled = jax.jit(jax.grad(both)).lower(weights, x).compile()
print(compiled.memory_analysis().temp_size_in_bytes)
"""


@functools.cache
def temporary(flags: str | None) -> int:
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {} if flags is None else {"XLA_FLAGS": flags}
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    command = [sys.executable, "-c", PROGRAM]
    return int(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.parametrize("own", [None, "", "--xla_cpu_enable_fast_math=false"])
def test_one_loss_after_the_other(own):
    users = temporary("--xla_cpu_enable_concurrency_optimized_scheduler=true")
    assert temporary(own) < 0.8 * users


def test_a_file_of_flags_stays_one(tmp_path):
    file = tmp_path / "flags"
    file.write_text("--xla_cpu_enable_concurrency_optimized_scheduler=true")
    assert temporary(str(file)) > temporary(None)
