"""The number of devices, and jit or pmap, change no result. One process with 8 CPU devices."""

import device_worker as worker
import numpy as np
import pytest
import worker_runs

OTHERS = [f"{backend}{count}" for backend, count in worker.LAYOUTS[1:]]
TERMS = {
    "self_distill": ("masked", "distill", "loss", "grad_norm"),
    "finetune": ("cross_entropy", "loss", "grad_norm"),
    "skips": ("skipped", "loss", "grad_norm"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What device_worker.py found: name -> array."""
    return worker_runs.run(worker, 8, tmp_path_factory.mktemp("devices"))


@pytest.mark.parametrize("layout", OTHERS)
@pytest.mark.parametrize("job", TERMS)
def test_losses_and_parameters_agree(found, layout, job):
    for term in TERMS[job]:
        expected = found[f"jit1/{job}/{term}"]
        assert expected.shape == (6,)
        np.testing.assert_allclose(found[f"{layout}/{job}/{term}"], expected, rtol=1e-5)
    expected = found[f"jit1/{job}/params"]
    np.testing.assert_allclose(found[f"{layout}/{job}/params"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("job", TERMS)
def test_the_comparison_is_about_a_training_that_moves(found, job):
    loss = found[f"jit1/{job}/loss"]
    assert len(set(loss)) == 6


def test_steps_are_skipped(found):
    """Example 7 is met once in the three steps of an epoch."""
    assert found["jit1/skips/skipped"].reshape(2, 3).sum(axis=1).tolist() == [1, 1]


@pytest.mark.parametrize("layout", OTHERS)
def test_masks_of_every_step_agree_bit_for_bit(found, layout):
    np.testing.assert_array_equal(found[f"{layout}/masks/code"], found["jit1/masks/code"])


@pytest.mark.parametrize("examples", worker.EXAMPLES)
@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("backend", ["jit", "pmap"])
def test_evaluation_sees_every_example_once(found, backend, devices, examples):
    rows, reference = found[f"{backend}{devices}/{examples}"], found["jit1/17"][:examples]
    assert rows.shape == (examples, 2 + 12)
    np.testing.assert_array_equal(rows[:, 0], np.arange(examples))
    np.testing.assert_allclose(rows[:, 1], reference[:, 1], rtol=1e-4, atol=1e-4)  # of the image
    np.testing.assert_array_equal(rows[:, 2:], reference[:, 2:])  # masks


def test_the_probe_agrees(found):
    values = lambda name: {
        float(found[f"{backend}{count}/{name}"]) for backend, count in worker.LAYOUTS
    }
    for name in ("probe_knn", "probe_linear"):
        (value,) = values(name)
        assert 0 < value < 100
