"""Exported folders: what transformers and timm make of them, and that they read back exactly."""

import dataclasses
import functools
import io
import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import tiny_vit
from PIL import Image

from sdfp import hub_folder, pretrained
from sdfp.data import decode, pixels
from sdfp.models import registry, vit_mae, vit_weights
from sdfp.models.interface import Card
from sdfp.types import UserError

FAMILY = registry.BACKBONES["vit_mae"]
NAMES = ("cat", "Löwe", "10", "a b", "cat")
CASES = {
    "plain": {},
    "hub_eps": {"layer_norm_eps": 1e-12},
    "grey_no_bias": {"image_size": 20, "channels": 1, "depth": 1, "qkv_bias": False},
    # Large enough to be seen: a forgotten eps of 1e-6 changes nothing at 1e-4.
    "large_eps": {"layer_norm_eps": 0.01},
}
KINDS = ("classifier", "masked")


def card(settings, kind):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    c = settings.channels
    data = {"image_size": settings.image_size, "channels": c, "mean": mean[:c], "std": std[:c]}
    return Card(settings, {"kind": "image", **data}, NAMES if kind == "classifier" else ())


def make_params(settings, kind):
    """Random parameters, no bias 0 and no scale 1."""
    generator = np.random.default_rng(0)

    def shapes(key):
        params = vit_mae.init(settings, jnp.float32, key)
        return vit_mae.add_head(settings, params, 5, key) if kind == "classifier" else params

    def draw(path, leaf):
        values = 0.2 * generator.standard_normal(leaf.shape) + ("scale" in str(path))
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(shapes, jax.random.key(0)))


@functools.cache
def exported(kind, case="plain"):
    """(settings, params, files)."""
    settings = tiny_vit.settings(**CASES[case])
    params = make_params(settings, kind)
    return settings, params, FAMILY.export(params, card(settings, kind))


@functools.cache
def our_logits(case):
    settings, params, _ = exported("classifier", case)
    batch = tiny_vit.batch(4, settings.image_size, settings.channels)
    run = jax.jit(lambda p: vit_mae.make(settings, jnp.float32).logits(p, batch, None, False))
    return batch["image"], np.asarray(run(params))


def read_json(folder):
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


def read_back(folder, kind):
    """(params, card) as a program that knows only the folder gets them."""
    described = FAMILY.describe(read_json(folder))
    backbone = FAMILY.make(described.settings, jnp.float32)
    weights = pretrained.open_weights(str(folder), "")
    if kind == "classifier":
        classes = len(described.class_names)
        return pretrained.load_classifier(weights, backbone, classes), described
    return pretrained.load(weights, backbone, jax.random.key(0), "stop")[0], described


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refuses(*words):
    """A UserError of one line that has all the words."""
    return pytest.raises(
        UserError, match="(?s)^(?!.*\n)" + "".join(f"(?=.*{re.escape(w)})" for w in words)
    )


def changed(kind, **entries):
    """The JSON files of an export with some entries changed; None removes one."""
    files = exported(kind)[2]
    config, processor = dict(files["config.json"]), dict(files["preprocessor_config.json"])
    for name, value in entries.items():
        content = processor if name in processor or name.startswith("do_") else config
        content[name] = value
        if value is None:
            del content[name]
    return {"config.json": config, "preprocessor_config.json": processor}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_reads_back_exactly(tmp_path, kind, case):
    settings, params, files = exported(kind, case)
    hub_folder.write_folder(tmp_path / "one", files)
    again, described = read_back(tmp_path / "one", kind)
    chex.assert_trees_all_equal(again, params)
    original = card(settings, kind)
    assert (described.input, described.class_names) == original[1:]
    fields = dataclasses.asdict(settings)
    if kind == "classifier":
        masking = ("mask_ratio", "normalize_targets")
        fields = {k: v for k, v in fields.items() if "decoder" not in k and k not in masking}
    assert {name: getattr(described.settings, name) for name in fields} == fields
    hub_folder.write_folder(tmp_path / "two", FAMILY.export(again, described))
    first = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == first
    timm = {"timm/config.json", "timm/model.safetensors", "README.md"}
    hub = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(first) == hub | timm
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    with safetensors.safe_open(tmp_path / "one" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_an_exported_folder_starts_a_run(tmp_path):
    settings, params, files = exported("masked")
    hub_folder.write_folder(tmp_path / "model", files)
    weights = pretrained.open_weights(str(tmp_path / "model"), "")
    run = tiny_vit.settings(dim=64, depth=7, decoder_dim=16, dropout_finetune=0.1)
    read = FAMILY.read_config(run, weights.config, {})
    assert read == dataclasses.replace(settings, dropout_finetune=0.1)
    backbone = FAMILY.make(read, jnp.float32)
    loaded, report = pretrained.load(weights, backbone, jax.random.key(0), "stop")
    chex.assert_trees_all_equal(loaded, params)
    assert report.initialised == report.left_out == report.notes == []


def test_a_head_is_read_on_request_in_both_spellings():
    settings, params, files = exported("classifier")
    backbone = FAMILY.make(settings, jnp.float32)
    for name in ("model.safetensors", "timm/model.safetensors"):
        tensors = files[name]
        loaded, renaming = backbone.from_torch(tensors, head=True)
        chex.assert_trees_all_equal(loaded, params)
        assert renaming.missing == {}
        assert renaming.left_out == []
        loaded, renaming = backbone.from_torch(tensors)
        assert set(loaded) == {"encoder"}
        assert len(renaming.left_out) == 2
    # A decoder is no part of a classifier, whatever its sizes.
    deeper = tiny_vit.settings(decoder_depth=3, decoder_dim=12)
    decoder = {"decoder": make_params(deeper, "masked")["decoder"]}
    more = files["model.safetensors"] | vit_weights.to_torch(decoder, deeper)
    loaded, renaming = backbone.from_torch(more, head=True)
    chex.assert_trees_all_equal(loaded, params)
    assert all(name.startswith("decoder.") for name in renaming.left_out)


def test_one_mlp_ratio_gives_the_mlp_size_that_timm_rounds_down_to():
    settings = tiny_vit.settings(dim=28, mlp_dim=61)
    files = FAMILY.export(make_params(settings, "classifier"), card(settings, "classifier"))
    assert int(28 * files["timm/config.json"]["model_args"]["mlp_ratio"]) == 61


@pytest.mark.parametrize(
    "entries",
    [
        {"size": 16},
        {"id2label": {str(i): NAMES[i] for i in (4, 0, 3, 1, 2)}},
        {"do_resize": None, "do_rescale": None, "rescale_factor": None, "resample": None},
        {"rescale_factor": 0.00392156862},
        {"qkv_bias": None, "initializer_range": None, "label2id": None, "architectures": None},
    ],
)
def test_what_other_programs_write_is_understood(entries):
    settings, _, files = exported("classifier")
    described = FAMILY.describe(changed("classifier", **entries))
    assert described == FAMILY.describe(files)
    assert described.class_names == NAMES
    assert described.settings.image_size == settings.image_size


def test_what_config_files_leave_out():
    described = FAMILY.describe(changed("classifier", id2label=None))
    assert described.class_names == ("LABEL_0", "LABEL_1")
    described = FAMILY.describe(changed("classifier", id2label=None, num_labels=3))
    assert described.class_names == ("LABEL_0", "LABEL_1", "LABEL_2")
    described = FAMILY.describe(changed("masked", mask_ratio=None, norm_pix_loss=None))
    assert (described.settings.mask_ratio, described.settings.normalize_targets) == (0.75, False)
    for entries, mean, std in (
        ({"do_normalize": False}, 0.0, 1.0),
        ({"image_mean": None, "image_std": None}, 0.5, 0.5),
        ({"image_mean": 0.25, "image_std": (0.1, 0.1, 0.1)}, 0.25, 0.1),
    ):
        data = FAMILY.describe(changed("classifier", **entries)).input
        assert (data["mean"], data["std"]) == ([mean] * 3, [std] * 3)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"image_size": [16, 16]}, ("image_size: int", "[16, 16]")),
        ({"image_size": None}, ("no image_size",)),
        ({"num_attention_heads": 0}, ("num_attention_heads: must be at least 1",)),
        ({"patch_size": 0}, ("patch_size: must be at least 1",)),
        ({"hidden_size": "8"}, ("hidden_size: int is expected",)),
        ({"layer_norm_eps": "1e-6"}, ("layer_norm_eps: float is expected",)),
        ({"id2label": ["a", "b"]}, ("id2label is ['a', 'b']",)),
        ({"id2label": {"0": "a"}}, ("two labels or more",)),
        ({"id2label": None, "num_labels": "3"}, ("num_labels: int is expected",)),
        ({"problem_type": "multi_label_classification"}, ("problem_type is 'multi",)),
        ({"model_type": "bert"}, ("bert",)),
        ({"id2label": {"0": "a", "2": "b"}}, ("id2label", "none for 1")),
        ({"id2label": {"1": "a", "2": "b"}}, ("id2label", "none for 0")),
        ({"id2label": None, "architectures": ["ViTModel"]}, ("neither a classifier",)),
        ({"size": {"shortest_edge": 16}}, ("shortest_edge", "16 x 16")),
        ({"size": {"height": 16, "width": 24}}, ("24", "16 x 16")),
        ({"size": 32}, ("size 32", "16 x 16")),
        ({"size": None}, ("size 224",)),
        ({"do_center_crop": True}, ("do_center_crop True",)),
        ({"rescale_factor": 1 / 127.5}, ("rescale_factor 0.0078", "1/255")),
        ({"do_rescale": False}, ("do_rescale False",)),
        ({"resample": 3}, ("resample is 3",)),
        ({"rescale_factor": "1/255"}, ("rescale_factor: float is expected",)),
        ({"image_std": [0.5, 0.0, 0.5]}, ("image_std: must be above 0",)),
        ({"image_mean": ["a"] * 3}, ("image_mean: float is expected",)),
        ({"image_mean": [0.5]}, ("image_mean has 1", "num_channels", "3")),
        ({"image_std": [0.5] * 4}, ("image_std has 4",)),
        ({"num_channels": 1}, ("image_mean has 3", "1")),
    ],
)
def test_folders_that_cannot_be_described(entries, words):
    file = "preprocessor_config.json" if "image_mean" in words[0] else "config.json"
    with refuses(file, *words):
        FAMILY.describe(changed("classifier", **entries))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_both_files_are_needed(name):
    with refuses(f"no {name}"):
        FAMILY.describe({k: v for k, v in changed("masked").items() if k != name})


def test_exports_that_do_not_fit():
    settings, params, _ = exported("classifier")
    right = card(settings, "classifier")
    with refuses("5 classes", "3 class names"):
        FAMILY.export(params, right._replace(class_names=NAMES[:3]))
    with refuses("0 classes", "5 class names"):
        FAMILY.export(exported("masked")[1], right)
    for wrong in ({"image_size": 32}, {"channels": 1}):
        with refuses("16", str(wrong)[1:-1]):
            FAMILY.export(params, right._replace(input=right.input | wrong))


def test_classifiers_that_do_not_fit(tmp_path):
    settings, _, files = exported("classifier")
    tensors = files["model.safetensors"]

    def load(changes, model=settings, classes=5):
        content = {name: v for name, v in (tensors | changes).items() if v is not None}
        weights = pretrained.Weights("somewhere", None, content, "")
        return pretrained.load_classifier(weights, FAMILY.make(model, jnp.float32), classes)

    with refuses("somewhere", "no classifier head"):
        load({"classifier.weight": None, "classifier.bias": None})
    with refuses("somewhere", "lacks classifier.bias"):
        load({"classifier.bias": None})
    with refuses("lacks vit.layernorm.bias"):
        load({"vit.layernorm.bias": None})
    with refuses("somewhere", "head/bias", "(5,)", "(7,)"):
        load({}, classes=7)
    with refuses("two tensors", "head.bias"):
        load({"head.bias": tensors["classifier.bias"]})
    with refuses("NaN", "head/bias"):
        load({"classifier.bias": np.full(5, np.nan, np.float32)})
    with refuses("no place", "vit.encoder.layer.1"):
        load({}, tiny_vit.settings(depth=1))
    with refuses("somewhere", "resized from (1, 17, 16)", "image size of config.json"):
        load({}, tiny_vit.settings(image_size=24))


def test_folders_that_cannot_be_written(tmp_path):
    files = {"a/b.json": {"x": [1, "é"]}}
    full = tmp_path / "full"
    hub_folder.write_folder(full, files)
    before = contents(tmp_path)
    assert before == {"full/a/b.json": b'{\n  "x": [\n    1,\n    "\\u00e9"\n  ]\n}\n'}
    for taken in (full, full / "a" / "b.json"):
        with refuses(str(taken), "not an empty folder"):
            hub_folder.write_folder(taken, files)
    with refuses("cannot be written"):
        hub_folder.write_folder(full / "a" / "b.json" / "c", files)
    with pytest.raises(ValueError, match="not JSON compliant"):
        hub_folder.write_folder(tmp_path / "nan", files | {"c.json": float("nan")})
    assert contents(tmp_path) == before
    (tmp_path / "empty").mkdir()
    hub_folder.write_folder(tmp_path / "empty", files)
    assert contents(tmp_path / "empty") == contents(full)


def as_torch(torch, image):
    return torch.tensor(np.asarray(image)).permute(0, 3, 1, 2)


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_transformers_classifies_as_we_do(tmp_path, case):
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    hub_folder.write_folder(tmp_path / "model", exported("classifier", case)[2])
    image, ours = our_logits(case)
    for kind in (
        transformers.AutoModelForImageClassification,
        transformers.ViTForImageClassification,
    ):
        model, info = kind.from_pretrained(tmp_path / "model", output_loading_info=True)
        assert not any(info.values()), info
    theirs = model.eval()(as_torch(torch, image)).logits.detach().numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.label2id == {"cat": 0, "Löwe": 1, "10": 2, "a b": 3}
    assert model.config.num_labels == 5


@pytest.mark.torch
@pytest.mark.parametrize("case", ["plain", "grey_no_bias", "large_eps"])
def test_transformers_reconstructs_as_we_do(tmp_path, case):
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    settings, params, files = exported("masked", case)
    hub_folder.write_folder(tmp_path / "model", files)
    kind = transformers.ViTMAEForPreTraining
    model, info = kind.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    batch = tiny_vit.batch(4, settings.image_size, settings.channels)
    noise = np.random.default_rng(1).random((4, settings.patches), np.float32)
    theirs = model.eval()(as_torch(torch, batch["image"]), noise=torch.tensor(noise))
    mask = vit_mae.mask_from_noise(jnp.asarray(noise), settings.visible)
    backbone = FAMILY.make(settings, jnp.float32)

    @jax.jit
    def loss(params):
        prediction = backbone.reconstruct(params, batch, mask, None, False)
        return backbone.reconstruction_loss(prediction, batch, mask).mean()

    np.testing.assert_allclose(loss(params), theirs.loss.item(), rtol=1e-4)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    chex.assert_trees_all_equal(backbone.from_torch(state)[0], params)


def picture(mode):
    """A smooth and a noisy half, in one of PIL's modes."""
    rows, columns = np.mgrid[:45, :31]
    smooth = np.stack([rows * 5, columns * 8, rows * 2 + columns * 3], -1).astype(np.uint8)
    smooth[:, 16:] = np.random.default_rng(0).integers(0, 256, (45, 15, 3))
    image = Image.fromarray(smooth).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray((rows * 5).astype(np.uint8)))
    return image


def as_we_read(image, data):
    """[1, image_size, image_size, channels] of the same image by our data side."""
    file = io.BytesIO()
    image.save(file, "png")
    decoded = decode.decode(file.getvalue(), data["image_size"], data["channels"])
    prepare = pixels.make_prepare(data["mean"], data["std"], data["image_size"])
    return np.asarray(prepare({"image": jnp.asarray(decoded)[None]}, None, False)["image"])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("case", "mode"),
    [("plain", "RGB"), ("plain", "L"), ("plain", "RGBA"), ("plain", "P"), ("grey_no_bias", "L")],
)
@pytest.mark.parametrize(("backend", "levels"), [("torchvision", 1), ("pil", 0)])
def test_the_image_processor_makes_our_input(tmp_path, case, mode, backend, levels):
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    if backend == "torchvision":
        pytest.importorskip("torchvision")
    settings, _, files = exported("classifier", case)
    hub_folder.write_folder(tmp_path / "model", files)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model", backend=backend)
    assert processor.backend == backend
    image, data = picture(mode), card(settings, "classifier").input
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    assert theirs.dtype == torch.float32
    ours = as_we_read(image, data).transpose(0, 3, 1, 2)
    difference = np.abs(theirs.numpy() - ours) * np.reshape(data["std"], (-1, 1, 1)) * 255
    print(f"{backend} {mode}: {difference.max():.4f} levels, mean {difference.mean():.4f}")
    assert difference.max() <= levels + 1e-3


@pytest.mark.torch
@pytest.mark.parametrize("case", CASES)
def test_timm_classifies_as_we_do(tmp_path, case):
    torch, timm = (pytest.importorskip(name) for name in ("torch", "timm"))
    settings, _, files = exported("classifier", case)
    hub_folder.write_folder(tmp_path / "model", files)
    text = (tmp_path / "model" / "README.md").read_text().replace("DIR", f"{tmp_path}/model")
    found: dict = {}
    exec(re.findall("```python\n(.*?)```", text, re.DOTALL)[1], found)  # as its reader would
    model = found["model"].eval()
    image, ours = our_logits(case)
    theirs = model(as_torch(torch, image)).detach().numpy()
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    assert model.pretrained_cfg["label_names"] == list(NAMES)
    data = timm.data.resolve_data_config({}, model=model)
    assert (data["crop_mode"], data["crop_pct"]) == ("squash", 1)
    # timm converts no images: that is its user's business.
    drawn = picture("L" if settings.channels == 1 else "RGB")
    tensor = timm.data.create_transform(**data)(drawn)[None].permute(0, 2, 3, 1).numpy()
    ours = as_we_read(drawn, card(settings, "classifier").input)
    np.testing.assert_allclose(tensor, ours, atol=1e-5)


@pytest.mark.torch
def test_timm_has_the_encoder_of_a_masked_model(tmp_path):
    torch, timm = (pytest.importorskip(name) for name in ("torch", "timm"))
    settings, params, files = exported("masked")
    hub_folder.write_folder(tmp_path / "model", files)
    folder = f"local-dir:{tmp_path}/model/timm"
    model = timm.create_model(folder, pretrained=True).eval()
    batch = tiny_vit.batch(4, settings.image_size)
    features = jax.jit(
        lambda encoder: FAMILY.make(settings, jnp.float32).features(encoder, batch, None, False)
    )
    theirs = model(as_torch(torch, batch["image"])).detach().numpy()
    np.testing.assert_allclose(theirs, features(params["encoder"]), atol=1e-4)
    assert timm.create_model(folder, pretrained=True, num_classes=7).head.weight.shape == (7, 16)
