"""`config.run.compilation_cache`: programs are kept, and only where nobody else can put any."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdfp import programs
from sdfp.types import UserError

PROGRAM = """
import sys, jax, jax.numpy as jnp
from sdfp import programs
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
programs.keep(sys.argv[1])
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(4)).sum(), end=" ")
print(any("cache_hits" in event for event in hits))
"""

# Without the cache of the tests' own.
ALONE = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}


def run(folder: Path) -> list[str]:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        cwd=Path(__file__).parents[1],
        env={**ALONE, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout.split()


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    folder = tmp_path / "made" / "programs"
    value, found = run(folder)
    assert found == "False"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert run(folder) == [value, "True"]


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(UserError, match="others can write to it"):
        programs.keep(str(tmp_path))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Not a directory"):
        programs.keep(str(tmp_path / "file" / "folder"))


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """By whom it belongs to: on a disk for reading only, say."""
    monkeypatch.setattr(programs.os, "access", lambda path, mode: False)
    with pytest.raises(UserError) as caught:
        programs.keep(str(tmp_path))
    assert str(caught.value) == f"config.run.compilation_cache={tmp_path}: it cannot be written"


def test_a_program_that_is_half_there_is_compiled_again(tmp_path):
    """JAX writes a program under its final name: another process may read the half of it, and a
    kill may leave it so. Its checksum tells."""
    folder = tmp_path / "programs"
    value, _ = run(folder)
    programs = [path for path in folder.iterdir() if path.name.endswith("-cache")]
    assert programs
    for size in (0, 10, 1000):
        for path in programs:
            os.truncate(path, size)
        assert run(folder) == [value, "False"]


def test_none_by_default():
    before = programs.jax.config.jax_compilation_cache_dir
    programs.keep("")
    assert programs.jax.config.jax_compilation_cache_dir == before
