"""Parity with PyTorch where it is not installed: against the numbers of golden/make_golden.py."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vit

from sdfp import losses
from sdfp.models import vit_mae, vit_weights

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
    settings = vit_weights.read_config(tiny_vit.settings(), json.loads(golden["config"].item()), {})
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
            logits = backbone.logits(params, batch, None, False)
            loss = backbone.reconstruction_loss(prediction, batch, mask).mean()
            entropy = losses.cross_entropy(logits, jnp.asarray(golden["label"], jnp.int32)).mean()
            return loss + entropy, {
                "loss": loss,
                "classification_loss": entropy,
                "prediction": prediction,
                "logits": logits,
            }

        gradient, results = jax.grad(loss_of, has_aux=True)(params)
        features = backbone.features(params["encoder"], batch, None, False, tokens="all")
        return results | {"features": features, "gradient": gradient}

    results = run(params)
    return results | {"hidden": mask.hidden, "gradient": backbone.to_torch(results["gradient"])}


@pytest.mark.parametrize("name", ["loss", "classification_loss", "features", "logits"])
def test_values(golden, ours, name):
    np.testing.assert_allclose(ours[name], golden[name], atol=1e-4)


def test_prediction_at_the_hidden_patches(golden, ours):
    expected = np.take_along_axis(golden["prediction"], ours["hidden"][:, :, None], axis=1)
    np.testing.assert_allclose(ours["prediction"], expected, atol=1e-4)


def test_gradients(golden, ours):
    settings = tiny_vit.settings(heads=4, decoder_depth=2)
    pairs = {slot.names[0]: slot.names for slot in vit_weights._slots(settings)}
    compared = 0
    for hub, value in ours["gradient"].items():
        for name, expected in under(golden, "gradient/").items():
            if name in pairs[hub]:
                error = np.linalg.norm(value - expected) / np.linalg.norm(expected)
                assert error <= 1e-3, (name, error)
                compared += 1
    assert compared == len(under(golden, "gradient/")) == 8


def test_file_is_small():
    assert FILE.stat().st_size < 300_000
