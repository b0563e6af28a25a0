"""Malformed models: settings, weight files, config.json, tokenizers. Each is told in one line that
names the file or key, before lists or arrays of the sizes that it claims are made.

What only a config says is in test_config.py, what does not fit between whole files in
test_pretrained.py, test_vit_export.py, test_roberta_export.py and test_tokenizer.py.
"""

import contextlib
import functools
import json
import math
import pickle
import random
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_roberta
import tiny_vit
from test_bad_inputs import refused
from test_config import FOLDER, parse, put

from sdfp import config, convert_pth, pretrained, trained
from sdfp.data import tokenizer
from sdfp.models import registry, roberta, vit_export, vit_mae
from sdfp.types import UserError

# --- settings

SETTINGS = {
    "a number of 400 digits": ("stages.finetune.learning_rate", 10**400, "finite .* got 1000"),
    "one of 5,000": ("seed", "9" * 5000, r"config\.seed: int is expected; got '999.*\.\.\.$"),
    "5,000 digits for a float": ("model.mask_ratio", 10**5000, "finite .* got a int too large"),
    "5,000 digits for a text": ("name", 10**5000, "str is expected; got a int too large"),
    "a text of 100,000 letters": ("init.kind", "x" * 10**5, r"'x+\.\.\. is none of .*Did you mean"),
    "a method of 100,000 letters": ("methods", ("x" * 10**5,), r"config\.methods: 'x+\.\.\. is n"),
    "bytes": ("data.dir", b"x", "str is expected; got b'x'"),
    "a function": ("data.dir", print, "str is expected; got <built-in function print>"),
    "half a character": ("name", "\ud800", "letters, digits"),
    "a set": ("seeds", {1, 2}, "a tuple is expected"),
    "a range": ("seeds", range(3), "a tuple is expected"),
    "a tuple in a tuple": ("seeds", ((1,),), r"int is expected; got \(1,\)"),
    "a NumPy number": ("seed", np.int64(3), "int is expected; got np.int64"),
    "minus zero steps": ("stages.finetune.steps", -0, "at least 1; got 0"),
    "the smallest float": ("stages.finetune.epsilon", -5e-324, "above 0; got -5e-324"),
    "NaN in a tuple": ("data.std", (math.nan,), "finite number"),
}  # fmt: skip


@pytest.mark.parametrize("bad", SETTINGS)
def test_settings(bad):
    key, value, why = SETTINGS[bad]
    values = config.read(str(FOLDER / "digits.py")).to_dict()
    put(values, key, value)
    assert refused(why, parse, values).startswith(f"config.{key}: ")


# --- weight files

KEY = jax.random.key(0)
BACKBONE = vit_mae.make(tiny_vit.settings(), jnp.float32)
TENSORS = BACKBONE.to_torch(BACKBONE.init(KEY))
WHOLE = safetensors.numpy.save(TENSORS)


def file(header, data=b"", length=None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def of(dtype="F32", shape=(2,), start=0, end=8, **more) -> dict:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}, **more}


EIGHT = bytes(8)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 1234\n"
FILES = {
    "empty": (b"", "header too small.*|cut short"),
    "a header of 4 EB": (file(of(), EIGHT, 2**62), "header too large"),
    "a header of 200 MB": (file(of(), EIGHT, 200_000_000), "header too large"),
    "a header past the end": (file(of(), b"", 1000), "header length"),
    "a header that is no JSON": (file(b"{{{{", EIGHT), "invalid JSON in header"),
    "a header that is no UTF-8": (file(b"\xff\xff"), "invalid UTF-8 in header"),
    "a header of brackets": (file(b"[" * 10**5), "invalid JSON in header"),
    "two tensors in one place": (file(of(b=of()["a"]), EIGHT), "invalid offset"),
    "a tensor past the end": (file(of(shape=(20,), end=80), EIGHT), "not fully covered"),
    "a place below 0": (file(of(start=-8, end=0), EIGHT), "invalid value"),
    "an end before the start": (file(of(start=8, end=0), EIGHT), "invalid offset"),
    "a gap": (file(of(start=8, end=16), EIGHT * 2), "invalid offset"),
    "more bytes than tensors": (file(of(), EIGHT * 2), "not fully covered"),
    "a shape of other bytes": (file(of(shape=(3,)), EIGHT), "shape|invalid"),
    "a shape that overflows": (file(of(shape=(2**62, 4), end=0)), "overflow"),
    "no elements, but a long side": (file(of(shape=(0, 2**62), end=0)), "too big"),
    "70 sides": (file(of(shape=(1,) * 70, end=4), bytes(4)), "dimension"),
    "an unknown format": (file(of("F7"), EIGHT), "unknown variant"),
    "facts that are no texts": (file(of(__metadata__={"x": 1}), EIGHT), "expected a string"),
    "a pointer of Git LFS": (POINTER, "a pointer of Git LFS: run `git lfs pull`"),
    "a pickle": (pickle.dumps({"a": 1}), "a pickle: see `python -m sdfp.convert_pth --help`"),
    "a file of torch.save": (b"PK\x03\x04" + bytes(300), "a pickle or a zip: see .*convert_pth"),
    "a web page": (b"\n<!DOCTYPE html><p>404</p>" + bytes(40), "a web page: get the file itself"),
    "half of it": (WHOLE[: len(WHOLE) // 2], "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("bad", FILES)
def test_weight_files(tmp_path, bad):
    content, why = FILES[bad]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    told = refused(why, pretrained.open_weights, str(tmp_path))
    assert told.startswith(f"{path}: not a whole safetensors file (")


def test_a_number_format_that_numpy_does_not_have(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file(of("F8_E4M3", (8,)), EIGHT))
    told = refused("float8", pretrained.open_weights, str(tmp_path))
    assert told.startswith(f"{path}: holds a number format that cannot be read here")


def test_a_folder_that_is_called_like_a_weight_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.mkdir()
    refused(f"^cannot read {path}: ", pretrained.open_weights, str(tmp_path))


def test_no_tensor(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file({}))
    refused(f"^{path}: no tensor in it; get it again", pretrained.open_weights, str(path))


def changed(name="vit.layernorm.bias", value=None, **more):
    spoilt = dict(TENSORS, **more)
    if value is not None:
        spoilt[name] = value
    else:
        del spoilt[name]
    return spoilt


ONES = np.ones(16, np.float32)
CONTENTS = {
    "a tensor of truths": (changed(value=ONES > 0), "layernorm.bias holds bool values"),
    "a tensor of bytes": (changed(value=ONES.astype(np.uint8)), "layernorm.bias holds uint8"),
    "a complex tensor": (changed(value=ONES.astype(np.complex64)), "layernorm.bias holds complex"),
    "an infinite number": (changed(value=ONES * np.inf), "NaN or infinite values in encoder/norm"),
    "a double beyond float32": (changed(value=np.full(16, 1e300)), "NaN or infinite values in"),
    "a number for a vector": (changed(value=ONES.sum()[...]), r"norm/bias has shape \(\)"),
    "one more side": (changed(value=ONES[None]), r"encoder/norm/bias has shape \(1, 16\)"),
    "a kernel with three sides": (
        changed("decoder.decoder_pred.weight", np.ones((48, 8, 1), np.float32)), "decoder/pred/ker",
    ),
    "no elements": (changed(value=ONES[:0]), r"encoder/norm/bias has shape \(0,\)"),
    "another patch size": (
        changed("vit.embeddings.patch_embeddings.projection.weight", np.ones((16, 3, 8, 8), "f4")),
        "encoder/patch_embed/kernel has shape",
    ),
    "positions of no square": (
        changed("vit.embeddings.position_embeddings", np.ones((1, 8, 16), "f4")), "a square grid",
    ),
    "positions without a side": (
        changed("vit.embeddings.position_embeddings", ONES), "a square grid|has shape",
    ),
    "a fused projection of another size": (
        changed(**{"blocks.0.attn.qkv.weight": np.ones((47, 16), np.float32)}), "no place in this",
    ),
    "a layer that is no number": (
        changed(**{"vit.encoder.layer.x.output.dense.bias": ONES}), "no place in this model for",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", CONTENTS)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_tensors(tmp_path, bad):
    tensors, why = CONTENTS[bad]
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    weights = pretrained.open_weights(str(path))
    assert str(path) in refused(why, pretrained.load, weights, BACKBONE, KEY, "stop")


def index(content):
    return content if isinstance(content, bytes) else json.dumps({"weight_map": content}).encode()


INDICES = {
    "no JSON": (b"{", "not readable as JSON"),
    "not UTF-8": (b"\xff\xfe", "not readable as JSON"),
    "brackets": (b"[" * 10**5, "not readable as JSON: maximum recursion"),
    "a list": (b"[]", "the whole of it is no object"),
    "no map": (b"{}", "weight_map is missing"),
    "an empty map": ({}, "it names no shard"),
    "a list for a map": (["a.safetensors"], "weight_map is no object"),
    "a number for a shard": ({"a": 3, "b": "a.safetensors"}, "weight_map.a is no text"),
    "a list for a shard": ({"a": ["a.safetensors"]}, "weight_map.a is no text"),
    "a shard that is not there": ({"a": "z.safetensors"}, "not there: z.safetensors"),
    "a shard of another folder": ({"a": "../a.safetensors"}, r"not there: \.\./a\.safetensors"),
    "a shard of the root": ({"a": "/a.safetensors"}, "not there: /a.safetensors"),
    "a tensor in two shards": ({"a": "a.safetensors", "b": "b.safetensors"}, "a is in another"),
}  # fmt: skip


@pytest.mark.parametrize("bad", INDICES)
def test_indices_of_shards(tmp_path, bad):
    content, why = INDICES[bad]
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (tmp_path / "a.safetensors", folder / "a.safetensors", folder / "b.safetensors"):
        path.write_bytes(file(of(), EIGHT))
    (folder / pretrained.INDEX).write_bytes(index(content))
    told = refused(why, pretrained.open_weights, str(folder))
    assert str(folder) in told


# --- config.json

FULL = vit_export.export(
    BACKBONE.init(KEY),
    trained.Card(
        tiny_vit.settings(),
        {"image_size": 16, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
        (),
    ),
)["config.json"]
LARGE = 2**24
CONFIGS = {
    "no JSON": (b"{", "not readable as JSON"),
    "nothing": (b"", "not readable as JSON"),
    "UTF-16": ("{}".encode("utf-16"), "not readable as JSON"),
    "brackets": (b'{"a":' * 10**5, "not readable as JSON: maximum recursion"),
    "a number of 5,000 digits": (b'{"patch_size": ' + b"9" * 5000 + b"}", "not readable as JSON"),
    "a list": (b"[]", "no object"),
    "nothing said": (b"{}", "model_type is None"),
    "a list of types": ({"model_type": ["vit_mae"]}, "model_type is "),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads: must be at least 1; got 0"),
    "heads that do not divide": ({"num_attention_heads": 3}, "dim: must be a multiple of 4"),
    "a size that is null": ({"hidden_size": None}, "hidden_size: int is expected; got None"),
    "a size that is a text": ({"hidden_size": "16"}, "hidden_size: int is expected; got '16'"),
    "a size that is true": ({"num_channels": True}, "num_channels: int is expected; got True"),
    "an eps of 0": ({"layer_norm_eps": 0}, "layer_norm_eps: must be above 0; got 0"),
    "an eps that is no number": ({"layer_norm_eps": math.nan}, "NaN is no finite number"),
    "an eps that is infinite": ({"layer_norm_eps": 10**400}, "layer_norm_eps: a finite number"),
    "a width of 16 million": ({"hidden_size": LARGE}, "hidden_size: must be at most 65536; got 1"),
    "a width of 60,000": ({"hidden_size": 60_000}, "hidden size of 60000, which no tensor"),
    "a decoder of 60,000": ({"decoder_hidden_size": 60_000}, "hidden size of 60000, which no te"),
    "16 million layers": ({"num_hidden_layers": LARGE}, "num_hidden_layers: must be at most 4096"),
    "4,000 layers": ({"num_hidden_layers": 4000}, "says 4000 layers, too many"),
    "4,000 layers of the decoder": ({"decoder_num_hidden_layers": 4000}, "4000 layers, too many"),
    "a patch of 16 million pixels": ({"patch_size": LARGE}, "image_size: must be a multiple of"),
    "a billion channels": ({"num_channels": 2**30}, "num_channels: must be at most 16777216"),
    "another width": ({"intermediate_size": 31}, r"mlp_in/bias has shape .* put the config\.json"),
    "no biases": ({"qkv_bias": False}, "no place in this model for .*query.bias"),
    "biases that are a word": ({"qkv_bias": "no"}, "qkv_bias: bool is expected; got 'no'"),
    "another activation": ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
}  # fmt: skip


@pytest.mark.parametrize("bad", CONFIGS)
def test_config_json(tmp_path, bad):
    content, why = CONFIGS[bad]
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    written = content if isinstance(content, bytes) else json.dumps({**FULL, **content}).encode()
    (tmp_path / "config.json").write_bytes(written)

    def load():
        weights, family = pretrained.open_weights(str(tmp_path)), registry.BACKBONES["vit_mae"]
        shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
        read = family.read_config(tiny_vit.settings(), weights.config, shapes)
        pretrained.load(weights, family.make(read, jnp.float32), KEY, "stop")

    refused(why, load)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"image_size": LARGE, "patch_size": 1}, "281474976710656 patches, too many"),
        ({"image_size": 0}, "image_size: must be at least 1"),
        ({"image_size": [16, 16]}, r"image_size: int is expected; got \[16, 16\]"),
        ({"mask_ratio": 2}, "mask_ratio: must be below 1"),
        ({"norm_pix_loss": "no"}, "normalize_targets: bool is expected"),
        ({"model_type": "vit", "id2label": None, "num_labels": 2**40}, "num_labels: must be"),
        ({"model_type": "vit", "id2label": {"0": "a", "2": "b"}}, "id2label has 2 .* none for 1"),
    ],
)  # fmt: skip
def test_a_model_that_is_described_by_its_files_alone(tmp_path, entries, why):
    """What `sdfp.predict --model` reads."""
    content = {**FULL, "architectures": ["ViTForImageClassification"], **entries}
    (tmp_path / "config.json").write_text(json.dumps(content))
    size = {"size": {"height": 16, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(size))
    told = refused(why, trained.open_folder, tmp_path)
    assert told.startswith(f"{tmp_path}: config.json: ")


ROBERTA = {
    "model_type": "roberta",
    **{"vocab_size": 40, "max_position_embeddings": 20, "hidden_size": 16, "type_vocab_size": 1},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "layer_norm_eps": 1e-5,
}


@functools.cache
def roberta_weights() -> bytes:
    backbone = roberta.make(tiny_roberta.settings(), jnp.float32)
    return safetensors.numpy.save(backbone.to_torch(backbone.init(KEY)))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"vocab_size": 41}, r"has shape \(40.*the model needs \(41"),
        ({"vocab_size": LARGE + 1}, "vocab_size: must be at most 16777216"),
        ({"vocab_size": 3}, "must be four ids below"),
        ({"max_position_embeddings": 2}, "max_positions: must be above 2"),
        ({"type_vocab_size": 2}, "type_vocab_size is 2"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"num_hidden_layers": 1}, "no place in this model for .*layer.1"),
        ({"num_hidden_layers": 4000}, "4000 layers, too many"),
        ({"hidden_size": 60_000}, "hidden size of 60000, which no tensor"),
        ({"pad_token_id": 39}, "must be four ids|max_positions"),
        ({"bos_token_id": "<s>"}, "bos_token_id: int is expected"),
    ],
)
def test_config_json_of_roberta(tmp_path, entries, why):
    settings, family = tiny_roberta.settings(), registry.BACKBONES["roberta"]
    (tmp_path / "model.safetensors").write_bytes(roberta_weights())
    (tmp_path / "config.json").write_text(json.dumps({**ROBERTA, **entries}))

    def load():
        weights = pretrained.open_weights(str(tmp_path))
        read = family.read_config(settings, weights.config, {})
        pretrained.load(weights, family.make(read, jnp.float32), KEY, "stop")

    refused(why, load)


# --- tokenizers


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("tokenizer.json", b"", "not a whole tokenizer.json"),
        ("tokenizer.json", b"null", "not a whole tokenizer.json"),
        ("tokenizer.json", b"[" * 10**5, "not a whole tokenizer.json"),
        ("tokenizer.json", b'{"version": "1.0"}', "not a whole tokenizer.json"),
        ("tokenizer.json", b'{"model": {"type": "Magic"}}', "not a whole tokenizer.json"),
        ("vocab.json", b"", "vocab.json: not readable as JSON"),
        ("vocab.json", b"[" * 10**5, "vocab.json: not readable as JSON"),
        ("vocab.json", b'{"a": 1e3}', "not a JSON object of entries and their numbers"),
        ("vocab.json", b'{"a": true}', "not a JSON object of entries and their numbers"),
        ("vocab.json", b'{"<s>": 0, "<pad>": 1}', "no entry </s> <unk> <mask>"),
        (
            "vocab.json",
            json.dumps({"<s>": 2**70, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}).encode(),
            "vocabulary and merges do not fit",
        ),
    ],
)
def test_tokenizers(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    if name != "tokenizer.json":
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert str(tmp_path) in refused(why, tokenizer.open_tokenizer, str(tmp_path))


# --- pickles of PyTorch


@pytest.mark.torch
def test_convert_pth(tmp_path):
    """See test_pretrained.py for what it says of code, and of paths."""
    torch = pytest.importorskip("torch")
    weight, target = torch.ones(4, 4), tmp_path / "out.safetensors"
    contents = {
        "not tensors: w. Only": {"w": weight.to_sparse()},
        "not tensors: 0. Only": {0: weight},
        "not tensors: w, x. Only": {"w": "text", "x": [weight]},
        "its tensors are 4398046511104 bytes, far more": {"w": torch.ones(1).expand(2**20, 2**20)},
    }
    source = tmp_path / "in.pth"
    for told, content in contents.items():
        torch.save(content, source)
        refused(told, convert_pth.convert, source, target)
    torch.save({"w": weight}, source)
    whole, rng = source.read_bytes(), random.Random(0)
    for _ in range(60):
        data = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(3):
            data[rng.randrange(len(data))] = rng.randrange(256)
        source.write_bytes(data)
        with contextlib.suppress(UserError):
            convert_pth.convert(source, target)
            target.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
