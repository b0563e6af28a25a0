"""Shared by all tests: strict numerics, quick compilation, and where the real data is."""

import os
from pathlib import Path

# Half of the suite's time would go into optimising programs that run for milliseconds. Set
# before jax is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that SDFP_TEST_DATA names; the test is skipped without it."""
    folder = os.environ.get("SDFP_TEST_DATA")
    if not folder:
        pytest.skip("SDFP_TEST_DATA is not set: no real data here")
    return Path(folder)
