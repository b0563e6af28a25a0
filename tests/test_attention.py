"""Fused attention computes what the plain one does, where it is asked for, and is checked first.

No GPU here: jax's own implementation of the same function stands in for cuDNN's.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest
import tiny_vit
from jax.flatten_util import ravel_pytree

from sdfp import initial, parallel, preflight, trained
from sdfp.models import attention, vit_mae, vit_modules
from sdfp.models.interface import Card
from sdfp.train import kept
from sdfp.types import UserError

ROOT = Path(__file__).parents[1]
KEY = jax.random.key(3)
PLAIN = tiny_vit.settings(depth=3, decoder_depth=2)
FUSED = dataclasses.replace(PLAIN, attention="cudnn")


@pytest.fixture
def stand_in(monkeypatch):
    """Fused attention that runs here; gives the token counts that it is called with."""
    monkeypatch.setattr(attention, "FUSED", "xla")
    calls, fused = [], attention.fused

    def noted(query, key, value, heads):
        assert query.dtype == jnp.bfloat16
        calls.append((query.shape[1], heads))
        return fused(query, key, value, heads)

    monkeypatch.setattr(vit_modules, "fused", noted)
    return calls


def results(function, dtype):
    """Values and gradients of attention over [2, 17, 3 heads of 8]."""
    *inputs, outer = jax.random.normal(KEY, (4, 2, 17, 24), dtype)
    values, pull_back = jax.vjp(lambda *x: function(*x, 3), *inputs)
    return values, *pull_back(outer)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_fused_is_plain(stand_in, dtype, tolerance):
    fused, plain = results(attention.fused, dtype), results(attention.attention, dtype)
    chex.assert_trees_all_equal_shapes_and_dtypes(fused, plain)
    as_float = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    chex.assert_trees_all_close(as_float(fused), as_float(plain), atol=tolerance, rtol=tolerance)


@jax.jit(static_argnums=0)
def outputs(settings, params, batch):
    """What two uses of a model make of one batch, and the gradients of the masked loss."""
    backbone = vit_mae.make(settings, jnp.bfloat16)
    mask = backbone.mask(batch, KEY)

    def loss(params):
        prediction = backbone.reconstruct(params, batch, mask, KEY, True)
        return jnp.mean(backbone.reconstruction_loss(prediction, batch, mask)), prediction

    gradients, prediction = jax.grad(loss, has_aux=True)(params)
    return {
        "prediction": prediction,
        "gradients": gradients,
        "features": backbone.features(params["encoder"], batch, KEY, False, tokens="all"),
    }


@pytest.mark.slow  # two models are compiled with their gradients
def test_a_model_with_fused_attention_is_near_the_plain_one(stand_in):
    params, batch = jax.jit(vit_mae.make(PLAIN, jnp.float32).init)(KEY), tiny_vit.batch()
    plain = outputs(PLAIN, params, batch)
    assert not stand_in
    fused = outputs(FUSED, params, batch)
    # What the check at the start of a run looks at is what the model then computes.
    assert set(stand_in) == {(tokens, heads) for tokens, heads, _ in FUSED.cudnn_shapes}
    assert [shape.head_dim for shape in FUSED.cudnn_shapes] == [8, 8, 4]
    for name, values in plain.items():
        a, b = (ravel_pytree(tree)[0].astype(jnp.float32) for tree in (values, fused[name]))
        assert jnp.linalg.norm(a - b) <= 0.02 * jnp.linalg.norm(a), name


def test_it_computes_only_where_all_tokens_are_read_and_in_bfloat16(stand_in):
    def calls(dtype, **how):
        block = vit_modules.Block(2, 32, 1e-6, True, 0.0, dtype, cudnn=True)
        x = jnp.zeros((1, 9, 16))
        params = {"params": block.init(KEY, x, None)["params"]}
        stand_in.clear()
        block.apply(params, x, None, **how)
        return len(stand_in)

    assert calls(jnp.bfloat16) == 1
    assert calls(jnp.bfloat16, read=vit_mae.first_token) == 0
    assert calls(jnp.float32) == 0


def test_check_passes_what_is_right(stand_in, capsys):
    preflight.check_attention(FUSED)
    assert "checked" in capsys.readouterr().out
    preflight.check_attention(PLAIN)
    assert not capsys.readouterr().out


def refused(settings) -> str:
    with pytest.raises(UserError) as caught:
        preflight.check_attention(settings)
    line = str(caught.value)
    assert line.startswith("config.model.attention=cudnn: for 2 heads of 8, 5 tokens, ")
    assert line.endswith(". Use plain")
    assert "\n" not in line
    return line


def wrong_scale(query, key, value, heads):
    return attention.attention(1.05 * query, key, value, heads)


def wrong_token(query, key, value, heads):
    return attention.attention(query, key, value, heads).at[:, -1].multiply(1.1)


def wrong_gradient(query, key, value, heads):
    return attention.attention(query, jax.lax.stop_gradient(key), value, heads)


def not_a_number(query, key, value, heads):
    return attention.attention(query, key, value, heads) * jnp.nan


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (wrong_scale, "the values are off by 0.0"),
        (wrong_token, "the values are off by 0.1"),
        (wrong_gradient, "the gradient of key are off by 1 "),
        (not_a_number, "the values are off by nan"),
    ],
)
def test_check_refuses_what_is_wrong(monkeypatch, broken, what):
    monkeypatch.setattr(attention, "fused", broken)
    assert what in refused(FUSED)


def test_check_tells_what_cudnn_refuses():
    assert "it fails: cuDNN is not detected" in refused(FUSED)


@pytest.mark.parametrize(
    ("platform", "precision", "fits"),
    [("gpu", "bfloat16", True), ("gpu", "float32", False), ("tpu", "bfloat16", False)],
)
def test_platform_and_precision(monkeypatch, platform, precision, fits):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    chosen = parallel.precision(precision)
    preflight.check_precision(PLAIN, chosen)
    if fits:
        preflight.check_precision(FUSED, chosen)
        return
    with pytest.raises(UserError, match=f"this is {platform} with {precision}. Use plain"):
        preflight.check_precision(FUSED, chosen)


def test_a_run_without_a_gpu_is_refused_before_training(tmp_path):
    arguments = ["--config=configs/vit_cub.py:smoke", "--config.model.attention=cudnn"]
    done = subprocess.run(
        [sys.executable, "-m", "sdfp.main", *arguments, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert (  # with what else is wrong: there are no data and weights
        "  - config.model.attention=cudnn needs an NVIDIA GPU and config.precision=bfloat16; "
        "this is cpu with float32. Use plain"
    ) in done.stderr.splitlines()
    assert list(tmp_path.iterdir()) == []


def test_it_is_part_of_what_a_training_stage_is_not_of_theta_init():
    for fields in (PLAIN.MASKED_ONLY, PLAIN.FINETUNE_ONLY):
        asked = initial.architecture("vit_mae", FUSED, *fields)
        assert asked.pop("attention") == "cudnn"
        # Plain is not mentioned: stages from before there was a choice still fit.
        assert asked == initial.architecture("vit_mae", PLAIN, *fields)
    assert initial.architecture("vit_mae", FUSED) == initial.architecture("vit_mae", PLAIN)


def test_a_kept_model_is_plain(tmp_path):
    size = {"image_size": FUSED.image_size, "channels": FUSED.channels}
    statistics = {"mean": [0.5] * FUSED.channels, "std": [0.5] * FUSED.channels}
    card = Card(FUSED, {"kind": "image", **size, **statistics}, ())
    params = vit_mae.make(PLAIN, jnp.float32).init(KEY)
    make = lambda directory: (jax.device_get(params), {})
    kept.keep(tmp_path, "init", {}, trained.to_json("vit_mae", card), make)
    assert trained.open_stage(tmp_path, "init").card == card._replace(settings=PLAIN)
    stored = json.loads((tmp_path / "stages/init/model.json").read_text())
    assert "attention" not in stored["settings"]
