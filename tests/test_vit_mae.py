"""Structure of the ViT-MAE backbone, without any reference implementation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vit

from sdfp.models import dropout, registry, vit_mae, vit_positions
from sdfp.types import UserError

KEY = jax.random.key(7)
SETTINGS = tiny_vit.settings()
BACKBONE = vit_mae.make(SETTINGS, jnp.float32)
BATCH = tiny_vit.batch()


@pytest.fixture(scope="module")
def params():
    """Encoder, decoder and a head of five classes."""
    fresh = BACKBONE.init(jax.random.key(0))
    return fresh | BACKBONE.add_head(fresh, 5, KEY)


@pytest.fixture(scope="module")
def outputs(params):
    return EVALUATE(params, BATCH, KEY)


def all_uses(backbone, train=False):
    """One compiled function with the results of every use."""

    @jax.jit
    def run(params, batch, key):
        return {
            "reconstruct": backbone.reconstruct(
                params, batch, backbone.mask(batch, KEY), key, train
            ),
            "features": backbone.features(params["encoder"], batch, key, train, tokens="all"),
            "logits": backbone.logits(params, batch, key, train),
        }

    return run


EVALUATE = all_uses(BACKBONE)


def masked_loss(backbone, params, batch, mask):
    prediction = backbone.reconstruct(params, batch, mask, None, False)
    return backbone.reconstruction_loss(prediction, batch, mask)


def test_parameters_have_a_layer_axis_and_the_agreed_names(params):
    assert set(params) == {"encoder", "decoder", "head"}
    chex.assert_shape(params["encoder"]["blocks"]["query"]["kernel"], (2, 16, 16))
    chex.assert_shape(params["encoder"]["blocks"]["mlp_in"]["bias"], (2, 32))
    chex.assert_shape(params["decoder"]["blocks"]["norm_mlp"]["scale"], (1, 8))
    leaves = {path[-1].key for path, _ in jax.tree.leaves_with_path(params)}
    assert leaves == {"kernel", "bias", "scale", "pos_embed", "cls_token", "mask_token"}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_layers_start_different_and_within_mae_bounds(params):
    blocks = params["encoder"]["blocks"]
    assert not np.allclose(blocks["out"]["kernel"][0], blocks["out"]["kernel"][1])
    bounds = {"query": 6 / (16 + 48), "out": 6 / 32, "mlp_in": 6 / 48}
    for name, bound in bounds.items():
        largest = float(jnp.max(jnp.abs(blocks[name]["kernel"])))
        assert 0.9 * bound**0.5 < largest <= bound**0.5
        assert not np.any(blocks[name]["bias"])


def test_sincos_positions_by_hand():
    table = vit_positions.sincos(8, 3)[0]
    assert not table[0].any()
    row, column = 2, 1
    omega = np.array([1.0, 0.01])
    features = [np.sin(column * omega), np.cos(column * omega)]
    features += [np.sin(row * omega), np.cos(row * omega)]
    np.testing.assert_allclose(table[1 + 3 * row + column], np.concatenate(features), rtol=1e-6)


def test_vit_base_hides_147_of_196_patches():
    settings = tiny_vit.settings(image_size=224, patch_size=16)
    mask = jax.jit(vit_mae.make(settings, jnp.float32).mask)({"index": jnp.arange(5)}, KEY)
    chex.assert_shape([mask.visible, mask.hidden], [(5, 49), (5, 147)])
    for visible, hidden in zip(mask.visible, mask.hidden, strict=True):
        assert sorted([*visible.tolist(), *hidden.tolist()]) == list(range(196))


def test_mask_depends_on_key_and_example_index_only():
    mask = BACKBONE.mask(BATCH, KEY)
    alone = BACKBONE.mask({"index": BATCH["index"][2:]}, KEY)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[2:], mask), alone)
    assert not np.array_equal(mask.visible[0], mask.visible[1])
    assert not np.array_equal(mask.visible, BACKBONE.mask(BATCH, jax.random.key(8)).visible)


def test_smallest_noise_stays_visible():
    mask = vit_mae.mask_from_noise(jnp.array([[0.9, 0.1, 0.5, 0.3]]), 2)
    np.testing.assert_array_equal(mask.visible, [[1, 3]])
    np.testing.assert_array_equal(mask.hidden, [[2, 0]])


def test_patchify_by_hand_and_back():
    image = jnp.arange(2 * 4 * 4 * 3.0).reshape(2, 4, 4, 3)
    patches = vit_mae.patchify(image, 2)
    np.testing.assert_array_equal(patches[1, 2], image[1, 2:4, 0:2].reshape(-1))
    np.testing.assert_array_equal(vit_mae.unpatchify(patches, 2, 2), image)


def test_loss_is_per_example_and_ignores_visible_targets(outputs):
    mask = BACKBONE.mask(BATCH, KEY)
    prediction = outputs["reconstruct"]
    chex.assert_shape(prediction, (3, 12, 48))

    def loss_of(image):
        return BACKBONE.reconstruction_loss(prediction, BATCH | {"image": image}, mask)

    chex.assert_shape(loss_of(BATCH["image"]), (3,))
    slope = jax.jit(jax.grad(lambda image: loss_of(image).sum()))(BATCH["image"])
    slope = vit_mae.patchify(slope, 4)
    assert not np.any(vit_mae.take(slope, mask.visible))
    assert np.all(np.any(vit_mae.take(slope, mask.hidden), axis=-1))


def test_encoder_sees_no_hidden_pixel(params, outputs):
    mask = BACKBONE.mask(BATCH, KEY)

    def read_with_noise_at(position):
        patches = vit_mae.patchify(BATCH["image"], 4)
        noisy = jax.vmap(lambda x, p: x.at[p].add(3.0))(patches, position)
        image = vit_mae.unpatchify(noisy, 4, 4)
        return EVALUATE(params, BATCH | {"image": image}, KEY)["reconstruct"]

    np.testing.assert_array_equal(read_with_noise_at(mask.hidden), outputs["reconstruct"])
    for place in range(SETTINGS.visible):
        moved = read_with_noise_at(mask.visible[:, place : place + 1])
        assert not np.allclose(moved, outputs["reconstruct"], atol=1e-4)


def test_targets_are_normalised_per_patch():
    mask = BACKBONE.mask(BATCH, KEY)
    target = vit_mae.reconstruction_target(SETTINGS, BATCH, mask)
    np.testing.assert_allclose(np.mean(target, -1), 0, atol=1e-6)
    np.testing.assert_allclose(np.var(target, -1, ddof=1), 1, atol=1e-4)
    plain = tiny_vit.settings(normalize_targets=False)
    pixels = vit_mae.reconstruction_target(plain, BATCH, mask)
    np.testing.assert_array_equal(
        pixels[0, 0], vit_mae.patchify(BATCH["image"], 4)[0, mask.hidden[0, 0]]
    )


def test_every_trained_parameter_gets_a_gradient(params, outputs):
    """Also with bfloat16 compute: near the float32 loss, and the gradient is float32."""
    mask = BACKBONE.mask(BATCH, KEY)
    backbone = vit_mae.make(SETTINGS, jnp.bfloat16)
    model = {"encoder": params["encoder"], "decoder": params["decoder"]}
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda p: masked_loss(backbone, p, BATCH, mask).mean())
    )(model)
    near = BACKBONE.reconstruction_loss(outputs["reconstruct"], BATCH, mask).mean()
    np.testing.assert_allclose(loss, near, rtol=0.02)
    chex.assert_tree_all_finite(gradient)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert leaf.dtype == jnp.float32
        # The key bias moves all scores of a query alike: the softmax does not see it.
        if "['key']['bias']" not in jax.tree_util.keystr(path):
            assert np.any(leaf), jax.tree_util.keystr(path)


def test_bfloat16_stays_near_float32(params, outputs):
    rough = all_uses(vit_mae.make(SETTINGS, jnp.bfloat16))(params, BATCH, None)
    for name, atol in {"reconstruct": 0.05, "features": 0.1, "logits": 0.02}.items():
        np.testing.assert_allclose(rough[name].astype(jnp.float32), outputs[name], atol=atol)
    assert rough["features"].dtype == rough["logits"].dtype == jnp.float32


def test_without_dropout_training_is_evaluation_and_needs_no_key(params, outputs):
    chex.assert_trees_all_equal(all_uses(BACKBONE, train=True)(params, BATCH, None), outputs)


@pytest.mark.parametrize("rate", ["dropout_pretrain", "dropout_finetune"])
def test_each_use_has_its_own_dropout(params, outputs, rate):
    """Drawn per (key, example index); off where the other rate counts."""
    backbone = vit_mae.make(tiny_vit.settings(**{rate: 0.5}), jnp.float32)
    run = all_uses(backbone, train=True)
    moved, other = run(params, BATCH, KEY), run(params, BATCH, jax.random.key(1))
    dropped = {"logits"} if rate == "dropout_finetune" else {"reconstruct", "features"}
    for name in outputs:
        assert (name in dropped) != np.allclose(moved[name], outputs[name], atol=1e-5)
        assert (name in dropped) != np.allclose(moved[name], other[name], atol=1e-5)
    turned = jax.tree.map(lambda x: x[::-1], BATCH)
    back = jax.tree.map(lambda x: x[::-1], run(params, turned, KEY))
    chex.assert_trees_all_close(back, moved, atol=1e-5)


def test_dropout_zeroes_the_given_share_and_keeps_the_mean():
    x = jnp.ones((8, 50, 40))
    example, position = jnp.broadcast_arrays(jnp.arange(8)[:, None], jnp.arange(50)[None])
    dropped = dropout.Dropout(0.25).apply({}, x, example, position, rngs={"dropout": KEY})
    assert isinstance(dropped, jax.Array)
    assert not np.array_equal(dropped[0], dropped[1])
    assert set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
    assert abs(float(dropped.mean()) - 1) < 0.02


def test_features_and_logits_of_cls(params, outputs):
    every = outputs["features"]
    chex.assert_shape(every, (3, 17, 16))
    np.testing.assert_allclose(np.mean(every, -1), 0, atol=1e-5)
    cls = BACKBONE.features(params["encoder"], BATCH, None, False)
    np.testing.assert_allclose(cls, every[:, 0], atol=1e-5)
    np.testing.assert_allclose(outputs["logits"], cls @ params["head"]["kernel"], atol=1e-5)
    with pytest.raises(ValueError, match="mean"):
        BACKBONE.features(params["encoder"], BATCH, None, False, tokens="mean")


def test_perturb_acts_on_the_patch_embeddings(params, outputs):
    seen = []

    def perturb(embeddings, example, position):
        seen.append((embeddings, example, position))
        return 2 * embeddings

    moved = BACKBONE.logits(params, BATCH, None, False, perturb=perturb)
    assert not np.allclose(moved, outputs["logits"], atol=1e-3)
    layer = params["encoder"]["patch_embed"]
    expected = vit_mae.patchify(BATCH["image"], 4) @ layer["kernel"] + layer["bias"][None, None]
    embeddings, example, position = seen[0]
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    np.testing.assert_array_equal(example, np.repeat(BATCH["index"][:, None], 16, axis=1))
    np.testing.assert_array_equal(position, np.repeat(np.arange(16)[None], 3, axis=0))


def test_head_is_fresh_and_the_decoder_dropped(params):
    tuned = BACKBONE.add_head(params, 300, KEY)
    assert set(tuned) == {"encoder", "head"}
    chex.assert_trees_all_equal(tuned["encoder"], params["encoder"])
    chex.assert_shape(tuned["head"]["kernel"], (16, 300))
    assert 0.019 < float(jnp.std(tuned["head"]["kernel"])) < 0.021
    assert not np.any(tuned["head"]["bias"])


@pytest.mark.parametrize("normalize_targets", [True, False])
def test_picture_keeps_the_original_and_the_visible_patches(params, outputs, normalize_targets):
    settings = tiny_vit.settings(normalize_targets=normalize_targets)
    backbone = vit_mae.make(settings, jnp.float32)
    pictures = jax.jit(backbone.picture)(params, BATCH, KEY)
    chex.assert_shape(pictures, (3, 3, 16, 16, 3))
    mask = backbone.mask(BATCH, KEY)
    masked, guess, original = (vit_mae.patchify(pictures[:, i], 4) for i in range(3))
    np.testing.assert_array_equal(pictures[:, 2], BATCH["image"])
    assert not np.any(vit_mae.take(masked, mask.hidden))
    for row in (masked, guess):
        seen = vit_mae.take(row, mask.visible)
        np.testing.assert_array_equal(seen, vit_mae.take(original, mask.visible))
    shown = vit_mae.take(guess, mask.hidden)
    if normalize_targets:
        mean, std = vit_mae.patch_statistics(vit_mae.take(original, mask.hidden))
        shown = (shown - mean) / std
    np.testing.assert_allclose(shown, outputs["reconstruct"], atol=1e-4)


def test_vmap_over_models_and_pmap_over_examples(params, outputs):
    mask = BACKBONE.mask(BATCH, KEY)
    loss = BACKBONE.reconstruction_loss(outputs["reconstruct"], BATCH, mask)

    def step(params, batch, key):
        return masked_loss(BACKBONE, params, batch, BACKBONE.mask(batch, key))

    twice = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    over_models = jax.jit(jax.vmap(step, in_axes=(0, None, None)))(twice, BATCH, KEY)
    np.testing.assert_allclose(over_models, jnp.stack([loss, loss]), rtol=1e-5)
    sharded = jax.tree.map(lambda x: x[None], BATCH)
    over_devices = jax.pmap(step, in_axes=(None, 0, None))(params, sharded, KEY)
    np.testing.assert_allclose(over_devices[0], loss, rtol=1e-5)


def test_wrong_image_shape_is_refused(params):
    with pytest.raises(AssertionError):
        BACKBONE.features(params["encoder"], tiny_vit.batch(side=20), None, False)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"heads": 3}, "model.dim"),
        ({"decoder_dim": 10, "decoder_heads": 2}, "model.decoder_dim"),
        ({"image_size": 18}, "model.image_size"),
        ({"mask_ratio": 0.99}, "model.mask_ratio"),
        ({"patch_size": 1, "channels": 1}, "model.normalize_targets"),
    ],
)
def test_settings_that_do_not_fit_name_the_key(changes, key):
    with pytest.raises(UserError, match=key):
        tiny_vit.settings(**changes)


def test_registry_entry_is_complete():
    family = registry.BACKBONES["vit_mae"]
    backbone = family.make(family.settings(**tiny_vit.SIZES), jnp.float32)
    assert all(callable(field) for field in backbone)
    assert callable(family.read_config)
