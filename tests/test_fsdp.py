"""Devices that each hold a part of the state train as one device does. 4 CPU devices."""

import fsdp_worker as worker
import numpy as np
import pytest
import worker_runs

from sdfp import parallel
from sdfp.types import UserError

TERMS = {
    "self_distill": ("masked", "distill", "loss", "grad_norm"),
    "skips": ("skipped", "loss", "grad_norm"),
    "adamw": ("cross_entropy", "loss", "grad_norm"),
    "mars": ("cross_entropy", "loss", "grad_norm"),
    "recadam": ("cross_entropy", "loss", "grad_norm"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What fsdp_worker.py found: name -> array."""
    return worker_runs.run(worker, 4, tmp_path_factory.mktemp("fsdp"))


@pytest.mark.slow
@pytest.mark.parametrize("job", TERMS)
def test_losses_and_parameters_agree(found, job):
    for term in TERMS[job]:
        expected = found[f"plain/{job}/{term}"]
        assert expected.shape == (6,)
        np.testing.assert_allclose(found[f"fsdp/{job}/{term}"], expected, rtol=1e-5)
    expected = found[f"plain/{job}/params"]
    np.testing.assert_allclose(found[f"fsdp/{job}/params"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_optimisers_differ_and_clip(found):
    ends = [found[f"plain/{job}/params"] for job in worker.OPTIMIZERS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(ends[one] - ends[other]).max() > 1e-3
    assert found["plain/adamw/grad_norm"].min() > 0.1  # `clip_norm`


@pytest.mark.slow
def test_each_device_holds_its_part(found):
    """Before a step and behind it; what is small and odd is on all of them."""
    assert (found["held/large"] / found["held/all"] < 0.26).all()
    np.testing.assert_array_equal(found["held/before"], found["held/behind"])
    assert found["held/programs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("first", worker.LAYOUTS)
@pytest.mark.parametrize("second", worker.LAYOUTS)
def test_a_stage_goes_on_with_the_other_layout(found, first, second):
    name, alone = f"{first}_{second}", "plain_plain"
    assert found[f"{name}/step"] == found[f"{alone}/step"] >= 3
    assert found[f"{name}/skipped"] == 3
    np.testing.assert_allclose(found[f"{name}/kernel"], found[f"{alone}/kernel"], rtol=1e-5)


def test_not_with_pmap():
    with pytest.raises(UserError, match=r"^config\.parallel\.fsdp: with .*backend=jit only$"):
        parallel.make("pmap", 1, True)
