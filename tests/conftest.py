"""Shared by all tests: strict numerics, quick compilation, and where the real data is."""

import os
import signal
from pathlib import Path

# Half of the suite's time would go into optimising programs that run for milliseconds. Set
# before jax is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax
import programs
import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a job in a script's background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # and processes of tests hear it
programs.keep()
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_unconfigure() -> None:
    programs.forget()


# The dearest files, the dearest first: the suite ends when its slower worker does, so that what is
# long must not begin last. The others follow in the order of their names.
LONGEST = (
    "test_devices",
    "test_resume",
    "test_smoke",
    "test_tables",
    "test_text_runs",
    "test_page",
    "test_tuning",
    "test_rows",
    "test_figure",
    "test_method_contract",
    "test_probe",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files; the tests of each stay in their order."""
    rank = {f"{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that SDFP_TEST_DATA names; the test is skipped without it."""
    folder = os.environ.get("SDFP_TEST_DATA")
    if not folder:
        pytest.skip("SDFP_TEST_DATA is not set: no real data here")
    return Path(folder)
