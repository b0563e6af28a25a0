"""Packed documents: the number of devices, and jit or pmap, change no result."""

import os
import subprocess
import sys
from pathlib import Path

import device_worker_text as worker
import numpy as np
import pytest

OTHERS = [f"{backend}{count}" for backend, count in worker.LAYOUTS[1:]]
TERMS = {
    "self_distill": ("masked", "distill", "loss", "grad_norm"),
    "finetune": ("cross_entropy", "loss", "grad_norm"),
}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What device_worker_text.py found: name -> array."""
    path = tmp_path_factory.mktemp("devices") / "found.npz"
    here = Path(worker.__file__)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-W", "error::UserWarning", str(here), str(path)]
    done = subprocess.run(
        command, cwd=here.parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(path))


@pytest.mark.parametrize("layout", OTHERS)
@pytest.mark.parametrize("job", TERMS)
def test_losses_and_parameters_agree(found, layout, job):
    for term in TERMS[job]:
        expected = found[f"jit1/{job}/{term}"]
        assert len(set(expected)) == 6  # a training that moves
        np.testing.assert_allclose(found[f"{layout}/{job}/{term}"], expected, rtol=2e-5)
    expected = found[f"jit1/{job}/params"]
    np.testing.assert_allclose(found[f"{layout}/{job}/params"], expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("examples", worker.EXAMPLES)
@pytest.mark.parametrize("layout", ["jit1", *OTHERS])
def test_evaluation_sees_every_document_once(found, layout, examples):
    logits = found[f"{layout}/{examples}"]
    assert logits.shape == (examples, 3)
    np.testing.assert_allclose(logits, found["jit1/17"][:examples], rtol=1e-4, atol=1e-6)
