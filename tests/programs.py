"""Compiled programs, kept for the time of a test session: for conftest.py.

More than half of the suite's time is compiling. What one file has compiled, another one and the
processes that tests start need not compile again. A folder for each worker of xdist: JAX writes a
program under its final name, so that another process could read half of it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

FOLDER = "SDFP_TEST_PROGRAMS"
"""Where all of them are; "" where none are kept. Set by the process that starts all others."""
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
READ_BACK = """
import jax
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
for _ in range(2):
    jax.jit(lambda x: x + 1)(1.0)
    jax.clear_caches()
assert "/jax/compilation_cache/cache_hits" in events
"""


def settings(folder: Path) -> dict[str, str | int]:
    """JAX's, as it names them in lower case."""
    return {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


def environment(folder: Path) -> dict[str, str]:
    return {name.upper(): str(value) for name, value in settings(folder).items()}


def can_be_read_back(folder: Path) -> bool:
    """Not everywhere: XLA takes its own programs for those of another machine on some processors,
    and says so on stderr (github.com/jax-ml/jax/issues/38445)."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", **environment(folder)}
    command = [sys.executable, "-c", READ_BACK]
    done = subprocess.run(command, env=env, capture_output=True, check=False)
    return (done.returncode, done.stderr) == (0, b"")


def keep() -> None:
    """From now on, in this process and those that it starts. The user's own folder is left alone:
    then nothing is kept here."""
    if WORKER is None:
        os.environ[FOLDER] = ""
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            made = Path(tempfile.mkdtemp(prefix="sdfp_test_programs_"))
            os.environ[FOLDER] = str(made)
            if not can_be_read_back(made / "first"):
                forget()
    if os.environ[FOLDER]:
        mine = Path(os.environ[FOLDER], WORKER or "main")
        os.environ.update(environment(mine))
        for name, value in settings(mine).items():
            jax.config.update(name, value)


def forget() -> None:
    """By the process that made the folder, when it needs it no more."""
    if WORKER is None and os.environ[FOLDER]:
        shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
        os.environ[FOLDER] = ""
