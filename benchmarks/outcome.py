"""What the benchmarks share: processes that answer in JSON, the machine, and how a run ends."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdfp.types import UserError

ROOT = Path(__file__).parents[1]


def answer(command: Sequence[str], given: str = "") -> dict[str, Any]:
    """The last line that a process prints, read as JSON; as `output`."""
    return json.loads(output(command, given).splitlines()[-1])


def output(command: Sequence[str], given: str = "") -> str:
    """What a process prints. It compiles everything itself: no cache of yours is in its way.

    Args:
        command: of a Python program, without the interpreter.
        given: its standard input.

    Raises:
        UserError: it failed; what it said of that was shown.
    """
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
        input=given,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"python {' '.join(command)[:80]} ended with exit code {done.returncode}")
    return done.stdout


def machine() -> dict[str, Any]:
    """The processor's name and its cores."""
    found = Path("/proc/cpuinfo")  # what platform.processor() does not tell on Linux
    name = re.search(r"model name\s*: (.*)", found.read_text()) if found.is_file() else None
    return {"cpu": name[1] if name else platform.processor(), "cores": os.cpu_count()}


def per_step(timed: Mapping[str, Any]) -> float:
    """Seconds: the mean of the steps that `ours_step` or `torch_step` timed by call, which are of
    unequal work where texts are read."""
    calls = zip(timed["seconds"], timed["counts"], strict=True)
    return sum(seconds * count for seconds, count in calls) / sum(timed["counts"])


def conclude(measure: Callable, show: Callable, path: Path | None) -> None:
    """Measures, shows what was found and writes it; a mistake of the user's is one line, exit 2."""
    try:
        made = measure()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    show(made)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made, indent=1, default=str) + "\n")
