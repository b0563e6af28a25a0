"""Parity with transformers' PyTorch ViTMAE and ViT on random weights, to 1e-4 (gradients 1e-3)."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_vit

from sdfp import losses, pretrained
from sdfp.models import registry, vit_config, vit_mae, vit_positions, vit_weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

CASES = {
    "hub_eps": {"layer_norm_eps": 1e-12, "normalize_targets": False},
    "deeper": {
        "image_size": 24,
        "patch_size": 8,
        "dim": 32,
        "depth": 3,
        "heads": 4,
        "mlp_dim": 48,
        "decoder_dim": 16,
        "decoder_depth": 2,
        "decoder_heads": 4,
    },
    "grey_no_bias": {
        "image_size": 20,
        "channels": 1,
        "depth": 1,
        "heads": 4,
        "qkv_bias": False,
        "mask_ratio": 0.6,
        # Large enough to be seen: a forgotten eps of 1e-6 changes nothing at 1e-4.
        "layer_norm_eps": 0.01,
    },
}


def randomise(model):
    """Draws every parameter anew, so that no bias is 0 and no scale is 1 by luck."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(True)
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_config(kind, settings, **more):
    s = settings
    if kind is transformers.ViTMAEConfig:
        more |= {
            "decoder_hidden_size": s.decoder_dim,
            "decoder_num_hidden_layers": s.decoder_depth,
            "decoder_num_attention_heads": s.decoder_heads,
            "decoder_intermediate_size": s.decoder_mlp_dim,
            "mask_ratio": s.mask_ratio,
            "norm_pix_loss": s.normalize_targets,
        }
    return kind(
        image_size=s.image_size,
        patch_size=s.patch_size,
        num_channels=s.channels,
        hidden_size=s.dim,
        num_hidden_layers=s.depth,
        num_attention_heads=s.heads,
        intermediate_size=s.mlp_dim,
        layer_norm_eps=s.layer_norm_eps,
        qkv_bias=s.qkv_bias,
        **more,
    )


def mae(settings):
    config = make_config(transformers.ViTMAEConfig, settings)
    return randomise(transformers.ViTMAEForPreTraining(config))


def arrays(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def gradients(model):
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def pixels(image):
    """[examples, height, width, channels] as torch has it."""
    return torch.tensor(np.asarray(image)).permute(0, 3, 1, 2)


def assert_gradients_close(ours, theirs, tolerance=1e-3):
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))
    everything = norm(theirs)
    chex.assert_trees_all_equal_structs(ours, theirs)
    expected = dict(jax.tree.leaves_with_path(theirs))
    for path, got in jax.tree.leaves_with_path(ours):
        name = jax.tree_util.keystr(path)
        if "['key']['bias']" in name:
            # Exactly 0 in theory (the softmax does not see it): rounding on both sides.
            assert max(norm(got), norm(expected[path])) <= 1e-6 * everything, name
            continue
        error = norm(got - expected[path]) / (norm(expected[path]) + 1e-6 * everything)
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize("case", CASES)
def test_masked_autoencoding(case):
    settings = tiny_vit.settings(**CASES[case])
    model = mae(settings)
    batch = tiny_vit.batch(4, settings.image_size, settings.channels)
    noise = np.random.default_rng(1).random((4, settings.patches), np.float32)
    theirs = model(pixels(batch["image"]), noise=torch.tensor(noise))
    theirs.loss.backward()

    backbone = vit_mae.make(settings, jnp.float32)
    params, renaming = backbone.from_torch(arrays(model.state_dict()))
    assert not renaming.missing
    assert not renaming.left_out
    mask = vit_mae.mask_from_noise(jnp.asarray(noise), settings.visible)
    hidden = np.zeros(noise.shape)
    np.put_along_axis(hidden, np.asarray(mask.hidden), 1, axis=1)
    np.testing.assert_array_equal(hidden, theirs.mask.numpy())

    @jax.jit
    def run(params):
        def loss_of(params):
            prediction = backbone.reconstruct(params, batch, mask, None, False)
            return backbone.reconstruction_loss(prediction, batch, mask).mean(), prediction

        return jax.value_and_grad(loss_of, has_aux=True)(params)

    (loss, prediction), gradient = run(params)
    np.testing.assert_allclose(loss, theirs.loss.item(), rtol=1e-4)
    expected = np.take_along_axis(theirs.logits.detach().numpy(), mask.hidden[:, :, None], axis=1)
    np.testing.assert_allclose(prediction, expected, atol=1e-4)
    assert_gradients_close(gradient, backbone.from_torch(gradients(model))[0])


@pytest.mark.parametrize("case", CASES)
def test_unmasked_features_and_classification(case):
    settings = tiny_vit.settings(**CASES[case])
    config = make_config(transformers.ViTConfig, settings, num_labels=5)
    model = randomise(transformers.ViTForImageClassification(config))
    batch = tiny_vit.batch(4, settings.image_size, settings.channels)
    label = np.array([0, 3, 4, 1])
    features = model.vit(pixels(batch["image"])).last_hidden_state
    theirs = model(pixels(batch["image"]), labels=torch.tensor(label))
    theirs.loss.backward()

    backbone = vit_mae.make(settings, jnp.float32)

    def renamed(tensors):
        params, renaming = backbone.from_torch(tensors)
        assert renaming.left_out == ["classifier.weight", "classifier.bias"]
        kernel, bias = tensors["classifier.weight"].T, tensors["classifier.bias"]
        return params | {"head": {"kernel": kernel, "bias": bias}}

    @jax.jit
    def run(params):
        every = backbone.features(params["encoder"], batch, None, False, tokens="all")
        return every, backbone.logits(params, batch, None, False)

    @jax.jit
    @jax.grad
    def slope(params):
        logits = backbone.logits(params, batch, None, False)
        return losses.cross_entropy(logits, jnp.asarray(label)).mean()

    params = renamed(arrays(model.state_dict()))
    every, logits = run(params)
    np.testing.assert_allclose(every, features.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(logits, theirs.logits.detach().numpy(), atol=1e-4)
    if case == "deeper":  # the others' encoder gradients are in the test above
        assert_gradients_close(slope(params), renamed(gradients(model)))


@pytest.mark.parametrize(("old", "new"), [(4, 6), (7, 10), (6, 4), (3, 3), (14, 24)])
def test_positions_are_resized_as_torch_does(old, new):
    table = np.random.default_rng(0).normal(size=(1, 1 + old * old, 8)).astype(np.float32)
    square = torch.tensor(table[:, 1:]).reshape(1, old, old, 8).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        square, size=(new, new), mode="bicubic", align_corners=False
    )
    resized = vit_positions.resize(table, new)
    np.testing.assert_array_equal(resized[:, 0], table[:, 0])
    expected = expected.permute(0, 2, 3, 1).reshape(1, new * new, 8).numpy()
    np.testing.assert_allclose(resized[:, 1:], expected, atol=1e-5)


def test_larger_images_as_transformers_interpolates():
    config = make_config(transformers.ViTConfig, tiny_vit.settings())
    model = randomise(transformers.ViTModel(config, add_pooling_layer=False))
    batch = tiny_vit.batch(2, side=24)
    theirs = model(pixels(batch["image"]), interpolate_pos_encoding=True).last_hidden_state
    backbone = vit_mae.make(tiny_vit.settings(image_size=24), jnp.float32)
    params, renaming = backbone.from_torch(arrays(model.state_dict()))
    assert len(renaming.notes) == 1
    features = jax.jit(lambda p: backbone.features(p, batch, None, False, tokens="all"))
    np.testing.assert_allclose(features(params["encoder"]), theirs.detach().numpy(), atol=1e-4)


def original_names(hub, settings):
    """The original repository's spelling of a hub file, written down independently."""
    renamed = {}
    pairs = [
        ("vit.embeddings.position_embeddings", "pos_embed"),
        ("vit.embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("vit.embeddings.", ""),
        ("vit.encoder.layer", "blocks"),
        ("vit.layernorm", "norm"),
        ("decoder.decoder_layers", "decoder_blocks"),
        ("decoder.", ""),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ]
    for name, value in hub.items():
        if "attention.attention" in name:
            if "query" in name:
                three = [hub[name.replace("query", part)] for part in ("query", "key", "value")]
                name = name.replace("attention.attention.query", "attn.qkv")
                value = np.concatenate(three)
            else:
                continue
        for theirs, original in pairs:
            name = name.replace(theirs, original)
        renamed[name] = value
    assert len([name for name in renamed if "qkv.weight" in name]) == (
        settings.depth + settings.decoder_depth
    )
    return renamed


def test_every_spelling_gives_the_same_parameters(tmp_path):
    settings = tiny_vit.settings()
    backbone = vit_mae.make(settings, jnp.float32)
    model = mae(settings)
    in_memory = arrays(model.state_dict())
    params, _ = backbone.from_torch(in_memory)
    model.save_pretrained(tmp_path)
    saved = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    hub = backbone.to_torch(params)
    original = original_names(hub, settings)
    assert "blocks.1.attn.qkv.bias" in original
    assert "mask_token" in original
    spellings = {
        "saved": saved,
        "hub": hub,
        "original": original,
        "prefixed": {f"model.{name}": value for name, value in original.items()},
    }
    for name, tensors in spellings.items():
        again, renaming = backbone.from_torch(tensors)
        assert not renaming.left_out, name
        assert not renaming.missing, name
        chex.assert_trees_all_equal(again, params)
    bare = {n.removeprefix("vit."): v for n, v in hub.items() if n.startswith("vit.")}
    chex.assert_trees_all_equal(backbone.from_torch(bare)[0], {"encoder": params["encoder"]})


def test_transformers_loads_what_we_write(tmp_path):
    settings = tiny_vit.settings()
    model = mae(settings)
    backbone = vit_mae.make(settings, jnp.float32)
    params, _ = backbone.from_torch(arrays(model.state_dict()))
    model.config.save_pretrained(tmp_path)
    safetensors.numpy.save_file(
        backbone.to_torch(params), tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    again, info = transformers.ViTMAEForPreTraining.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_what_save_pretrained_writes_is_read_with_its_config(tmp_path):
    settings = tiny_vit.settings(layer_norm_eps=1e-12)
    model = mae(settings)
    model.save_pretrained(tmp_path)
    weights = pretrained.open_weights(str(tmp_path), "")
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    other = tiny_vit.settings(dim=8, depth=5, decoder_dim=16, heads=1, layer_norm_eps=1e-3)
    read = registry.BACKBONES["vit_mae"].read_config(other, weights.config, shapes)
    assert read == settings
    backbone = vit_mae.make(read, jnp.float32)
    params, report = pretrained.load(weights, backbone, jax.random.key(0), "stop")
    assert not report.initialised
    assert not report.left_out
    chex.assert_trees_all_equal(params, backbone.from_torch(arrays(model.state_dict()))[0])


def test_original_sizes_are_read_from_the_shapes():
    settings = tiny_vit.settings(
        dim=768, heads=12, depth=3, decoder_dim=32, decoder_heads=16, decoder_depth=2
    )
    fresh = jax.eval_shape(vit_mae.make(settings, jnp.float32).init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), fresh)
    original = original_names(vit_weights.to_torch(zeros, settings), settings)
    shapes = {name: value.shape for name, value in original.items()}
    changes = {"depth": 1, "dim": 16, "heads": 2, "mlp_dim": 8, "decoder_mlp_dim": 4}
    other = dataclasses.replace(settings, **changes)
    assert vit_config.read_config(other, None, shapes) == settings


def test_config_of_a_plain_vit_leaves_the_decoder_alone():
    settings = tiny_vit.settings()
    config = make_config(transformers.ViTConfig, tiny_vit.settings(depth=4, dim=24))
    entries = json.loads(config.to_json_string(use_diff=False))
    read = vit_config.read_config(settings, entries, {})
    assert read == dataclasses.replace(settings, depth=4, dim=24)
