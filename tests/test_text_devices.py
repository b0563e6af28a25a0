"""Packed documents: the number of devices, and jit or pmap, change no result."""

import device_worker_text as worker
import numpy as np
import pytest
import worker_runs

OTHERS = [f"{backend}{count}" for backend, count in worker.LAYOUTS[1:]]
TERMS = {
    "self_distill": ("masked", "distill", "loss", "grad_norm"),
    "finetune": ("cross_entropy", "loss", "grad_norm"),
}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What device_worker_text.py found: name -> array."""
    return worker_runs.run(worker, 8, tmp_path_factory.mktemp("devices"))


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
