"""Parity with PyTorch where it is not installed: against the numbers of golden/make_golden.py."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vit

from sdfp.models import vit_config, vit_mae

FILE = Path(__file__).parent / "golden" / "vit_mae.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(FILE, allow_pickle=False) as file:
        return dict(file)


def under(golden, prefix):
    """The arrays called `prefix/NAME`, by NAME."""
    return {name.removeprefix(prefix): golden[name] for name in golden if name.startswith(prefix)}


@pytest.fixture(scope="module")
def ours(golden):
    """What we compute from the same weights, images and noise."""
    settings = vit_config.read_config(tiny_vit.settings(), json.loads(golden["config"].item()), {})
    backbone = vit_mae.make(settings, jnp.float32)
    weights = under(golden, "weight/")
    params, renaming = backbone.from_torch(weights)
    assert renaming.left_out == ["classifier.weight", "classifier.bias"]
    kernel, bias = weights["classifier.weight"].T, weights["classifier.bias"]
    params |= {"head": {"kernel": kernel, "bias": bias}}
    image = jnp.asarray(golden["image"].transpose(0, 2, 3, 1))
    batch = {"image": image, "index": jnp.arange(3), "weight": jnp.ones(3)}
    mask = vit_mae.mask_from_noise(jnp.asarray(golden["noise"]), settings.visible)

    @jax.jit
    def run(params):
        def loss_of(params):
            prediction = backbone.reconstruct(params, batch, mask, None, False)
            return backbone.reconstruction_loss(prediction, batch, mask).mean(), prediction

        (loss, prediction), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
        return {
            "loss": loss,
            "prediction": prediction,
            "gradient": gradient,
            "features": backbone.features(params["encoder"], batch, None, False, tokens="all"),
            "logits": backbone.logits(params, batch, None, False),
        }

    return run(params) | {"hidden": mask.hidden, "from_torch": backbone.from_torch}


@pytest.mark.parametrize("name", ["loss", "features", "logits"])
def test_values(golden, ours, name):
    np.testing.assert_allclose(ours[name], golden[name], atol=1e-4)


def test_prediction_at_the_hidden_patches(golden, ours):
    expected = np.take_along_axis(golden["prediction"], ours["hidden"][:, :, None], axis=1)
    np.testing.assert_allclose(ours["prediction"], expected, atol=1e-4)


def test_gradients(golden, ours):
    expected, renaming = ours["from_torch"](under(golden, "gradient/"))
    assert not renaming.missing
    expected = dict(jax.tree.leaves_with_path(expected))
    everything = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in expected.values()))
    for path, leaf in jax.tree.leaves_with_path(ours["gradient"]):
        if path[0].key != "head":
            # 1e-6: the gradient of the key bias is 0 in theory, rounding on both sides.
            error = np.linalg.norm(leaf - expected[path]) - 1e-6 * everything
            assert error <= 1e-3 * np.linalg.norm(expected[path]), jax.tree_util.keystr(path)


def test_file_is_small():
    assert FILE.stat().st_size < 300_000
