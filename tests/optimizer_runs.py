"""Optimisers on the parameters of both families, with made-up gradients: for test_recadam.py and
test_mars.py."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import tiny_roberta
import tiny_vit
import training

from configs import common
from sdfp import checkpoint
from sdfp.models import roberta, vit_mae

STEPS = 30
# A large epsilon, so that its place matters.
CHANGES = {"steps": STEPS, "learning_rate": 0.02, "weight_decay": 0.3, "epsilon": 1e-3}
MASKED = training.recipe(common.masked_recipe(), **CHANGES)
FINETUNE = training.recipe(common.finetune_recipe(), **CHANGES, warmup_steps=4)
BACKBONES = {
    "vit": vit_mae.make(tiny_vit.settings(), jnp.float32),
    "roberta": roberta.make(tiny_roberta.settings(), jnp.float32),
}


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x)
        for path, x in jax.tree.leaves_with_path(tree)
    }


def start(model):
    backbone = BACKBONES[model]
    keys = jax.random.split(jax.random.key(0))
    return jax.device_get(backbone.add_head(backbone.init(keys[0]), 3, keys[1]))


PARAMS = {model: start(model) for model in BACKBONES}


def gradients_of(model):
    rng = np.random.default_rng(1)
    draw = lambda x: (0.05 * rng.normal(size=x.shape)).astype(np.float32)
    return [jax.tree.map(draw, PARAMS[model]) for _ in range(STEPS)]


GRADIENTS = {model: gradients_of(model) for model in PARAMS}


@functools.cache
def compiled(tx):
    """One step, buffers donated as in training."""

    def update(params, opt_state, gradient):
        updates, opt_state = tx.update(gradient, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state

    return jax.jit(update, donate_argnums=(0, 1))


@functools.cache
def history(tx, model):
    """[(parameters, optimiser's state)] after every step, on the host."""
    params = jax.tree.map(jnp.array, PARAMS[model])
    opt_state, states = tx.init(params), []
    for gradient in GRADIENTS[model]:
        before = (params, opt_state)
        params, opt_state = compiled(tx)(params, opt_state, gradient)
        assert all(x.is_deleted() for x in jax.tree.leaves(before))
        states.append(jax.tree.map(np.array, (params, opt_state)))
    return states


def trained(tx, model):
    """Every parameter after the last step."""
    return flat(history(tx, model)[-1][0])


def check_resumed(tx, folder):
    """A third of the steps, then the others from a file: arrays only, and no bit changes."""
    params, half = PARAMS["vit"], history(tx, "vit")[10]
    assert all(np.size(x) for x in jax.tree.leaves(half))
    checkpoint.save(folder / "half", half, {})
    half, _ = checkpoint.restore(folder / "half", like=(params, tx.init(params)))
    half = jax.tree.map(jnp.array, half)
    for gradient in GRADIENTS["vit"][11:]:
        half = compiled(tx)(*half, gradient)
    chex.assert_trees_all_equal(jax.device_get(half), history(tx, "vit")[-1])
