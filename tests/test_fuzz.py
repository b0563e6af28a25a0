"""Random malformed settings and weight files: each is read, or refused with a `UserError` of one
line. No other exception, no allocation of a size that a file only claims, no hang.

The draws are fixed, so that CI sees the same every time; `slow` draws many more.
"""

import functools
import json
import re
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_roberta
import tiny_vit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_config import FOLDER, dotted, parse, put

from sdfp import config, pretrained
from sdfp.models import registry, roberta, vit_mae
from sdfp.types import UserError

MANY = 40
"""Times the draws of the default suite, with the marker `slow`."""


def drawn(examples):
    """A test's draws: the same every time, not kept, however long each takes."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def refusal(call, *arguments) -> str:
    """The line with which a call is refused; "" where it is not."""
    try:
        call(*arguments)
    except UserError as error:
        lines = error.problems
    else:
        return ""
    assert max(map(len, lines)) < 1500
    return "; ".join(lines)


# --- settings


@functools.cache
def defaults(name: str) -> str:
    return json.dumps(config.read(str(FOLDER / f"{name}.py")).to_dict())


NAMES = ("digits", "roberta_twitter_emotion")
KEYS = {name: dotted(json.loads(defaults(name))) for name in NAMES}
NUMBERS = st.one_of(
    st.floats(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.sampled_from([0, -0.0, 1, 2**31, 2**32, 2**63, 1e308, 5e-324]),
)
WORDS = st.one_of(
    st.text(st.characters(), max_size=20),  # half characters, too
    st.sampled_from(["", "x" * 10**5, "nan", "True", "1", "../..", "finetune", "vit_mae", "\0"]),
)
LEAVES = st.one_of(
    st.none(), st.booleans(), NUMBERS, WORDS, st.binary(max_size=5), st.complex_numbers()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    max_leaves=5,
)


def check_settings(data):
    name = data.draw(st.sampled_from(NAMES))
    values = json.loads(defaults(name))
    keys = data.draw(st.lists(st.sampled_from(KEYS[name]), min_size=1, max_size=2, unique=True))
    for key in sorted(keys, reverse=True):  # what is in a block before the block itself
        put(values, key, data.draw(VALUES))
    if line := refusal(parse, values):
        # The key, one in its block, or one that does not go with it.
        named = re.match(r"config\.(\w+)", line)
        assert named
        assert named[1] in {key.split(".")[0] for key in keys}, line


@drawn(150)
@given(st.data())
def test_settings(data):
    check_settings(data)


@pytest.mark.slow
@drawn(150 * MANY)
@given(st.data())
def test_many_settings(data):
    check_settings(data)


# --- weight files

KEY = jax.random.key(0)
FAMILIES = {
    "vit_mae": (tiny_vit.settings(), vit_mae.make(tiny_vit.settings(), jnp.float32)),
    "roberta": (tiny_roberta.settings(), roberta.make(tiny_roberta.settings(), jnp.float32)),
}
CONFIGS = {
    "vit_mae": {
        **{"model_type": "vit_mae", "image_size": 16, "patch_size": 4, "num_channels": 3},
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 32, "layer_norm_eps": 1e-6, "qkv_bias": True},
        **{"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1},
        **{"decoder_num_attention_heads": 2, "decoder_intermediate_size": 16},
    },
    "roberta": {
        **{"model_type": "roberta", "vocab_size": 40, "max_position_embeddings": 20},
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 24, "layer_norm_eps": 1e-5, "type_vocab_size": 1},
    },
}


@functools.cache
def whole(name: str) -> dict[str, bytes]:
    """A sound folder."""
    _, backbone = FAMILIES[name]
    weights = safetensors.numpy.save(backbone.to_torch(backbone.init(KEY)))
    text = json.dumps(CONFIGS[name]).encode()
    return {"model.safetensors": weights, "config.json": text}


def mutated(data, content: bytes) -> bytes:
    """With bytes changed, cut, put in or taken out, mostly where a header is."""
    spoilt = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        limit = data.draw(st.sampled_from([16, 2000, len(spoilt)]))
        place = data.draw(st.integers(0, max(0, min(limit, len(spoilt)) - 1)))
        kind = data.draw(st.sampled_from(["byte", "digit", "cut", "insert", "remove", "copy"]))
        if kind == "byte" and spoilt:
            spoilt[place] = data.draw(st.integers(0, 255))
        elif kind == "digit":
            digits = [m.start() for m in re.finditer(rb"\d", bytes(spoilt[:4000]))]
            if digits:
                at = data.draw(st.sampled_from(digits))
                spoilt[at : at + 1] = data.draw(st.sampled_from([b"0", b"9", b"-1", b"99999999"]))
        elif kind == "cut":
            del spoilt[place:]
        elif kind == "insert":
            spoilt[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "remove":
            del spoilt[place : place + data.draw(st.integers(1, 9))]
        else:
            spoilt[place : place + 4] = spoilt[:4]
    return bytes(spoilt)


def read(name: str, folder: Path) -> None:
    """As a run does; what is accepted has passed every check."""
    family, (run, made) = registry.BACKBONES[name], FAMILIES[name]
    weights = pretrained.open_weights(str(folder))
    shapes = {key: tensor.shape for key, tensor in weights.tensors.items()}
    resolved = family.read_config(run, weights.config, shapes)
    backbone = made if resolved == run else family.make(resolved, jnp.float32)
    params, _ = pretrained.load(weights, backbone, KEY, "stop")
    leaves = jax.tree.leaves(params)
    assert all(np.isfinite(leaf).all() and leaf.dtype == jnp.float32 for leaf in leaves)


def check_weights(data, folder: Path):
    name = data.draw(st.sampled_from(sorted(FAMILIES)))
    file = data.draw(st.sampled_from(["model.safetensors", "model.safetensors", "config.json"]))
    content = whole(name)
    for path, sound in content.items():
        (folder / path).write_bytes(mutated(data, sound) if path == file else sound)
    refusal(read, name, folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sound_folder_is_read(tmp_path, name):
    """Else all the others would be refused for nothing."""
    for path, content in whole(name).items():
        (tmp_path / path).write_bytes(content)
    read(name, tmp_path)


def fuzz_weights(folder: Path, examples: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    drawn(examples)(given(st.data())(lambda data: check_weights(data, folder)))()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000  # KB: what JAX keeps of the models that it traced


def test_weights(tmp_path):
    fuzz_weights(tmp_path, 80)


@pytest.mark.slow
def test_many_weights(tmp_path):
    fuzz_weights(tmp_path, 80 * MANY)
