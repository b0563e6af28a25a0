"""Shared by all tests: strict numerics, quick compilation, and where the real data is."""

import os
from pathlib import Path

# Most of the suite's time is XLA's: half of it goes into optimising programs that run for
# milliseconds. Before jax is imported; processes that tests start inherit it.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that SDFP_TEST_DATA names; the test is skipped without it."""
    folder = os.environ.get("SDFP_TEST_DATA")
    if not folder:
        pytest.skip("SDFP_TEST_DATA is not set: no real data here")
    return Path(folder)
