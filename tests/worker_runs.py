"""Runs a *_worker.py in a process with several CPU devices."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np


def run(worker: ModuleType, devices: int, folder: Path) -> dict[str, np.ndarray]:
    """What it found: name -> array. A warning of the user's kind fails it."""
    here, path = Path(str(worker.__file__)), folder / "found.npz"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-W", "error::UserWarning", str(here), str(path)]
    done = subprocess.run(
        command, cwd=here.parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(path))
