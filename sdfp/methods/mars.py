"""Row "MARS": fine-tuning with every layer kept within a ball around the weights it starts from, in
the maximum absolute row sum norm, by a projection after each step (Gouk et al. 2021,
"Distance-Based Regularisation of Deep Networks for Fine-Tuning").

A layer is a leaf called `kernel`, or one of a stack of them: [..., in, out], and what is held is
each output unit's sum over `in`. Attention's kernels have their heads merged: `query`, `key` and
`value` are summed over what they read, `out` over all heads. Not covered, a choice: biases,
LayerNorm's scales, embeddings, pos_embed and cls_token (the original leaves biases free, too, and
holds BatchNorm's scales, which no model here has).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdfp import optim
from sdfp.methods.interface import Method
from sdfp.settings import Recipe, number
from sdfp.types import Params

COVERED = frozenset({"kernel"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.mars`: the radii of the balls, around 0 in the head."""

    radius: float = number(above=0)
    head_radius: float = number(above=0)


class ProjectionState(NamedTuple):
    """The centres of the balls: copies of the encoder's kernels as `init` saw them."""

    anchor: Any
    """Like the parameters, with no array in the head nor where nothing is projected."""


@lru_cache
def make_optimizer(recipe: Recipe, settings: Settings) -> optax.GradientTransformation:
    """AdamW as a recipe says, then the projection.

    The anchor is what `init` is given: the weights that fine-tuning starts from, theta_init in a
    row without further pre-training. It travels in the optimiser's state, so that a resumed run
    has it too.
    """
    return optax.chain(optim.adamw_of(recipe), projection(recipe, settings))


def projection(recipe: Recipe, settings: Settings) -> optax.GradientTransformation:
    """Changes final updates so that each covered layer ends within its ball; inside, no bit."""
    covered = COVERED - {*recipe.frozen}

    def init(params):
        return ProjectionState(optim.anchored(params, covered.__contains__))

    def update(updates, state, params=None):
        def bounded(path, change, param, anchor):
            if path[-1].key not in covered:
                return change
            if path[0].key == "head":
                return _into_ball(change, param, jnp.zeros_like(param), settings.head_radius)
            return _into_ball(change, param, anchor, settings.radius)

        projected = jax.tree_util.tree_map_with_path(bounded, updates, params, state.anchor)
        return projected, state

    return optax.GradientTransformation(init, update)


def _into_ball(change, kernel, anchor, radius: float) -> jax.Array:
    """The change, all [..., in, out], after which each output unit is within the ball."""
    offset = kernel + change - anchor
    norm = jnp.sum(jnp.abs(offset), axis=-2, keepdims=True)
    projected = anchor + offset / jnp.maximum(1.0, norm / radius)
    return jnp.where(norm > radius, projected - kernel, change)


def distance(params: Params, reference: Params) -> jax.Array:
    """The MARS distance of two encoders: the sum over their layers of max_j sum_i |W_ij - W*_ij|.

    Args:
        params: an encoder. Of its leaves those called `kernel` count, [in, out] as one layer,
            [layers, in, out] as so many.
        reference: another one, W*, of the same structure and shapes.

    Returns:
        A scalar, differentiable with respect to both.

    References: Gouk et al. 2021, "Distance-Based Regularisation of Deep Networks for Fine-Tuning".
    """

    def of_leaf(covered, kernel, other):
        if not covered:
            return jnp.zeros(())
        return jnp.sum(jnp.max(jnp.sum(jnp.abs(kernel - other), axis=-2), axis=-1))

    named = optim.name_mask(params, COVERED)
    return sum(jax.tree.leaves(jax.tree.map(of_leaf, named, params, reference)), jnp.zeros(()))


METHOD = Method(settings=Settings, make_optimizer=make_optimizer)
