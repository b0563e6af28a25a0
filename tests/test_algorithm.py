"""Algorithm 1 with a stand-in for training: what goes into which stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vit
from fake_fit import Fit

from sdfp import algorithm
from sdfp.models import vit_mae

SETTINGS = tiny_vit.settings()
BACKBONE = vit_mae.make(SETTINGS, jnp.float32)
BATCH = tiny_vit.batch()
KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def params():
    return BACKBONE.init(jax.random.key(0))


def test_further_pretraining_is_one_masked_stage():
    fit, init = Fit(), {"encoder": "theta", "decoder": "phi"}
    result = algorithm.further_pretraining(init, backbone=BACKBONE, fit=fit)
    assert result["encoder"] == "encoder of further_pretrain"
    loss = algorithm.masked_loss(BACKBONE)
    assert fit.calls == [{"name": "further_pretrain", "loss": loss, "params": init}]


@pytest.mark.parametrize("rounds", [1, 3])
def test_every_student_restarts_and_learns_from_the_one_before(rounds):
    fit, init = Fit(), {"encoder": "theta", "decoder": "phi"}
    result = algorithm.self_distilled_pretraining(init, backbone=BACKBONE, fit=fit, rounds=rounds)
    names = ["further_pretrain", *(f"self_distill_{t}" for t in range(1, rounds + 1))]
    assert [call["name"] for call in fit.calls] == names
    assert all(call["params"] is init for call in fit.calls)
    students = fit.calls[1:]
    assert [call["frozen"] for call in students] == [f"encoder of {name}" for name in names[:-1]]
    # The same function objects: all rounds share one compiled program.
    assert len({(call["loss"], call["per_example"]) for call in students}) == 1
    assert {call["recipe"] for call in students} == {"self_distill"}
    assert result == {"encoder": f"encoder of {names[-1]}", "decoder": f"decoder of {names[-1]}"}


@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_weights_and_tokens_are_handed_on(tokens):
    fit = Fit()
    algorithm.self_distilled_pretraining(
        {}, backbone=BACKBONE, fit=fit, tokens=tokens, masked_weight=0.5, distill_weight=2.0
    )
    student = fit.calls[1]
    assert student["weights"] == {"masked": 0.5, "distill": 2.0}
    assert student["identity"] == {"features": tokens}
    assert student["loss"] is algorithm.self_distillation_loss(BACKBONE, tokens)
    assert student["per_example"] is algorithm.teacher_features(BACKBONE, tokens)


def test_the_published_weights_are_the_default():
    fit = Fit()
    algorithm.self_distilled_pretraining({}, backbone=BACKBONE, fit=fit)
    assert [call["name"] for call in fit.calls] == ["further_pretrain", "self_distill_1"]
    assert fit.calls[1]["weights"] == {"masked": 1.0, "distill": 1.0}
    assert fit.calls[1]["identity"] == {"features": "cls"}


@pytest.mark.parametrize("tokens", ["cls", "all"])
def test_distillation_compares_features_of_the_unmasked_input(params, tokens):
    @jax.jit
    def distill(encoder):
        target = algorithm.teacher_features(BACKBONE, tokens)(encoder, BATCH)
        batch = {**BATCH, "target": target + 2.0}  # 2 away in each of 16 dimensions
        loss = algorithm.self_distillation_loss(BACKBONE, tokens)
        return loss({**params, "encoder": encoder}, None, batch, KEY)["distill"]

    np.testing.assert_allclose(distill(params["encoder"]), 4 * 16, rtol=1e-4)


def test_the_decoder_learns_from_the_masked_term_alone(params):
    batch = {**BATCH, "target": jnp.ones((3, 16))}

    def objective(params, weights):
        terms = algorithm.self_distillation_loss(BACKBONE, "cls")(params, None, batch, KEY)
        return sum(weights[name] * value.sum() for name, value in terms.items())

    gradient = jax.jit(jax.grad(objective))
    for weights in ({"masked": 1.0, "distill": 0.0}, {"masked": 0.0, "distill": 1.0}):
        found = gradient(params, weights)
        learns = {part: any(map(np.any, jax.tree.leaves(found[part]))) for part in found}
        assert learns == {"encoder": True, "decoder": weights["masked"] > 0}


def test_the_masked_loss_ignores_the_visible_patches_targets():
    # Nothing is predicted (zeros), so the loss depends on the image as target only.
    blind = BACKBONE._replace(
        reconstruct=lambda params, batch, mask, key, train: jnp.zeros((3, 12, 48))
    )
    loss = lambda batch: algorithm.masked_loss(blind)({}, None, batch, KEY)["masked"]
    mask = BACKBONE.mask(BATCH, jax.random.split(KEY)[0])
    noise = jax.random.normal(jax.random.key(9), BATCH["image"].shape)

    def with_noise_at(places):
        patches = vit_mae.patchify(BATCH["image"], SETTINGS.patch_size)
        there = np.zeros(patches.shape[:2], bool)
        np.put_along_axis(there, np.asarray(places), True, axis=1)
        noisy = jnp.where(there[:, :, None], vit_mae.patchify(noise, 4), patches)
        return {**BATCH, "image": vit_mae.unpatchify(noisy, 4, SETTINGS.grid)}

    np.testing.assert_array_equal(loss(with_noise_at(mask.visible)), loss(BATCH))
    assert np.all(loss(with_noise_at(mask.hidden)) != loss(BATCH))
