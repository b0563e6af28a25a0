"""Weight files on disk: strict merge, and one clear line for each thing that can be wrong."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiny_vit

from sdfp import convert_pth, pretrained
from sdfp.models import registry, vit_mae
from sdfp.types import UserError

KEY = jax.random.key(3)
SETTINGS = tiny_vit.settings()
BACKBONE = vit_mae.make(SETTINGS, jnp.float32)
CONFIG = {
    "model_type": "vit_mae",
    "hidden_act": "gelu",
    "image_size": 224,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "decoder_hidden_size": 8,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
    "norm_pix_loss": False,
}


@pytest.fixture(scope="module")
def params():
    return BACKBONE.init(jax.random.key(0))


@pytest.fixture
def tensors(params):
    return BACKBONE.to_torch(params)


@pytest.fixture
def folder(tmp_path, tensors):
    """A folder as `save_pretrained` leaves it."""
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def load(path, missing_decoder="stop"):
    return pretrained.load(pretrained.open_weights(str(path), ""), BACKBONE, KEY, missing_decoder)


def load_tensors(tmp_path, tensors, missing_decoder="stop"):
    safetensors.numpy.save_file(tensors, tmp_path / "some.safetensors")
    return load(tmp_path / "some.safetensors", missing_decoder)


def refuses(*words):
    """A UserError of one line that has all the words."""
    return pytest.raises(
        UserError, match="(?s)^(?!.*\n)" + "".join(f"(?=.*{re.escape(w)})" for w in words)
    )


def test_folder_file_and_shards_give_the_same(folder, tensors, params, tmp_path_factory):
    loaded, report = load(folder)
    chex.assert_trees_all_equal(loaded, params)
    assert sorted(report.loaded) == sorted(tensors)
    assert report.initialised == report.left_out == []
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.float32)}
    weights = pretrained.open_weights(str(folder / "model.safetensors"), "")
    assert weights.config == CONFIG
    expected = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert report.digest == weights.digest == expected
    assert expected[:12] in report.lines()[0]

    shards = tmp_path_factory.mktemp("shards")
    names = sorted(tensors)
    files = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, part in files.items():
        safetensors.numpy.save_file({name: tensors[name] for name in part}, shards / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    chex.assert_trees_all_equal(load(shards)[0], params)
    (shards / "b.safetensors").unlink()
    with refuses("b.safetensors", "not there"):
        load(shards)


def test_bfloat16_files_become_float32(tmp_path, tensors):
    rough = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    loaded, _ = load_tensors(tmp_path, rough)
    got = np.asarray(loaded["encoder"]["norm"]["scale"])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, rough["vit.layernorm.weight"].astype(np.float32))


def test_architecture_comes_from_the_file_and_the_rest_from_the_run(folder):
    weights = pretrained.open_weights(str(folder), "")
    run = tiny_vit.settings(dim=64, depth=7, image_size=32, mask_ratio=0.5, dropout_finetune=0.1)
    read = registry.BACKBONES["vit_mae"].read_config(run, weights.config, {})
    expected = tiny_vit.settings(image_size=32, mask_ratio=0.5, dropout_finetune=0.1)
    assert read == expected
    params, report = pretrained.load(weights, vit_mae.make(read, jnp.float32), KEY, "stop")
    chex.assert_shape(params["encoder"]["pos_embed"], (1, 65, 16))
    assert sum("resized" in line for line in report.lines()) == 2


def test_heads_and_poolers_are_left_out_and_listed(tmp_path, tensors):
    more = {"classifier.weight": np.ones((5, 16), np.float32), "pooler.dense.bias": np.ones(16)}
    _, report = load_tensors(tmp_path, tensors | more)
    assert sorted(report.left_out) == sorted(more)
    assert any("classifier.weight" in line for line in report.lines())


def test_missing_decoder_stops_or_starts_from_scratch(tmp_path, tensors, params):
    encoder = {name: value for name, value in tensors.items() if name.startswith("vit.")}
    with refuses("has no decoder", "config.init.missing_decoder=scratch"):
        load_tensors(tmp_path, encoder)
    loaded, report = load_tensors(tmp_path, encoder, "scratch")
    chex.assert_trees_all_equal(loaded["encoder"], params["encoder"])
    chex.assert_trees_all_equal(loaded["decoder"], BACKBONE.init(KEY)["decoder"])
    assert "decoder/pred/kernel" in report.initialised
    assert any("initialised" in line for line in report.lines())


@pytest.mark.parametrize(
    "name",
    ["vit.embeddings.cls_token", "vit.encoder.layer.1.output.dense.bias", "decoder.mask_token"],
)
@pytest.mark.parametrize("missing_decoder", ["stop", "scratch"])
def test_a_single_missing_tensor_is_named(tmp_path, tensors, name, missing_decoder):
    del tensors[name]
    with refuses("lacks", name):
        load_tensors(tmp_path, tensors, missing_decoder)


@pytest.mark.parametrize("missing_decoder", ["stop", "scratch"])
def test_one_broken_layer_is_no_missing_decoder(tmp_path, tensors, missing_decoder):
    kept = {n: v for n, v in tensors.items() if not n.startswith("vit.encoder.layer.0")}
    with refuses("lacks", "vit.encoder.layer.0.attention", "and 12 more"):
        load_tensors(tmp_path, kept, missing_decoder)


def test_tensors_that_do_not_fit_are_named(tmp_path, tensors):
    name = "vit.encoder.layer.0.intermediate.dense.bias"
    ones = np.ones(32, np.float32)
    with refuses("encoder/blocks/mlp_in/bias", "differ in shape"):
        load_tensors(tmp_path, tensors | {name: ones[:7]})
    with refuses("encoder/norm/bias", "(3,)", "(16,)"):
        load_tensors(tmp_path, tensors | {"vit.layernorm.bias": ones[:3]})
    with refuses("vit.encoder.layer.2.output.dense.bias", "depth"):
        load_tensors(tmp_path, tensors | {"vit.encoder.layer.2.output.dense.bias": ones[:16]})
    with refuses("some.safetensors", "two tensors", "layernorm.bias"):
        load_tensors(tmp_path, tensors | {"layernorm.bias": ones[:16]})
    with refuses("int64", "vit.layernorm.bias"):
        load_tensors(tmp_path, tensors | {"vit.layernorm.bias": np.ones(16, np.int64)})
    with refuses("(1, 12, 16)", "square"):
        uneven = {"vit.embeddings.position_embeddings": np.ones((1, 12, 16), np.float32)}
        load_tensors(tmp_path, tensors | uneven)
    with refuses("encoder/blocks/mlp_in/bias", "NaN"):
        load_tensors(tmp_path, tensors | {name: np.full_like(ones, np.nan)})


def test_files_that_are_broken_or_absent(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with refuses(str(file), "cut short"):
        load(folder)
    file.write_bytes(whole)
    (folder / "config.json").write_text("{")
    with refuses("config.json", "JSON"):
        load(folder)
    (folder / "config.json").write_text("[]")
    with refuses("config.json", "no object", "get it again"):
        load(folder)
    with refuses("empty"):
        load("")
    for absent in ("/no/such/folder", "./here", "weights.safetensors", "a/b/c"):
        with refuses(absent, "no such file"):
            load(absent)
    with refuses("config.json", "not a .safetensors"):
        load(folder / "config.json")
    file.rename(folder / "one.safetensors")
    (folder / "two.safetensors").write_bytes(whole)
    with refuses("several", "one.safetensors"):
        load(folder)


def test_pickles_are_refused_with_the_command_to_convert(tmp_path):
    with refuses("no .safetensors", "python -m sdfp.convert_pth"):
        load(tmp_path)
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(b"")
    for path in (tmp_path, pickle):
        with refuses(f"python -m sdfp.convert_pth {pickle} {tmp_path / 'model.safetensors'}"):
            load(path)


def test_hub_failures_are_one_line(monkeypatch, folder):
    hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")  # hub has it once it was imported
    # The hub's HTTP library changes its name between versions.
    http = sys.modules[errors.HfHubHTTPError.__bases__[0].__module__.split(".")[0]]

    def answer(error):
        def download(weights, revision, allow_patterns):
            if error is None:
                assert revision is None
                return str(folder)
            raise error

        monkeypatch.setattr(hub, "snapshot_download", download)

    response = http.Response(404, request=http.Request("GET", "https://example.com"))
    for error, words in {
        errors.HFValidationError("no"): "not a hub id",
        errors.LocalEntryNotFoundError("no"): "cannot be reached",
        errors.OfflineModeIsEnabled("no"): "cannot be reached",
        errors.RepositoryNotFoundError("no", response=response): "no such model on the hub",
        errors.RevisionNotFoundError("no", response=response): "no revision",
        errors.GatedRepoError("no", response=response): "gated",
        http.ReadTimeout("too\nslow"): "ReadTimeout: too slow",
    }.items():
        answer(error)
        with refuses("facebook/vit", words):
            load("facebook/vit")
    answer(None)
    weights = pretrained.open_weights("facebook/vit", "")
    assert weights.config == CONFIG
    assert weights.path == str(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "bert"}, "bert"),
        ({"hidden_act": "relu"}, "relu"),
        ({"hidden_size": None}, "hidden_size"),
        ({"patch_size": [16, 8]}, "patch_size"),
    ],
)
def test_config_that_does_not_fit(changes, words):
    config = {k: v for k, v in (CONFIG | changes).items() if v is not None}
    with refuses("config.json", words):
        registry.BACKBONES["vit_mae"].read_config(SETTINGS, config, {})


def test_without_config_the_sizes_must_be_readable():
    with refuses("config.json"):
        registry.BACKBONES["vit_mae"].read_config(SETTINGS, None, {"vit.x": (3,)})


@pytest.mark.torch
def test_convert_pth(tmp_path, tensors, params):
    torch = pytest.importorskip("torch")
    source, target = tmp_path / "mae.pth", tmp_path / "mae.safetensors"
    content = {name: torch.tensor(value) for name, value in tensors.items()}
    torch.save({"model": content}, source)
    command = [sys.executable, "-m", "sdfp.convert_pth", str(source), str(target)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert hashlib.sha256(target.read_bytes()).hexdigest() in done.stdout
    chex.assert_trees_all_equal(load(target)[0], params)


@pytest.mark.torch
@pytest.mark.parametrize(
    "problem", ["code", "strangers", "cut", "there", "suffix", "absent", "list"]
)
def test_convert_pth_refuses(tmp_path, problem, capsys):
    torch = pytest.importorskip("torch")
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    weight = torch.zeros(2)
    torch.save({"w": weight}, source)
    if problem == "code":
        torch.save({"model": {"w": weight}, "args": Path("x")}, source)
    elif problem == "strangers":
        torch.save({"w": weight, "epoch": 3}, source)
    elif problem == "cut":
        source.write_bytes(source.read_bytes()[:100])
    elif problem == "there":
        target.write_bytes(b"precious")
    elif problem == "suffix":
        target = tmp_path / "out.pth"
    elif problem == "absent":
        source = tmp_path / "none.pth"
    else:
        torch.save([weight], source)
    words = {
        "code": "could run code",
        "strangers": "not tensors: epoch",
        "cut": "cut short",
        "there": "already",
        "suffix": "*.safetensors",
        "absent": "no such file",
        "list": "no {name: tensor}",
    }
    assert convert_pth.main([str(source), str(target)]) == 2
    told = capsys.readouterr().err
    assert words[problem] in told
    assert told.count("\n") == 1
    assert problem == "there" or not target.exists()


@pytest.mark.torch
def test_convert_pth_wants_a_safe_torch(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.zeros(2)}, tmp_path / "in.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert convert_pth.main([str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]) == 2
    assert "2.10" in capsys.readouterr().err
