"""Schedule, parameter masks and AdamW, from plain arguments or from a recipe."""

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sdfp.settings import Recipe


def warmup_linear_schedule(learning_rate: float, steps: int, warmup_steps: int) -> optax.Schedule:
    """Linear from 0 over `warmup_steps`, then linear to 0 at `steps`.

    The first update uses step 0 (learning rate 0 when there is a warm-up), as the
    linear schedule of Hugging Face does.
    """
    decay = optax.linear_schedule(learning_rate, 0.0, steps - warmup_steps)
    if warmup_steps == 0:
        return decay
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def name_mask(params: Any, names: Collection[str]) -> Any:
    """True where the last part of a parameter's path is in `names`.

    By name, not by rank: blocks are stacked over layers, so a bias has two dimensions here.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in names, params)


def other_mask(params: Any, names: Collection[str]) -> Any:
    """True where `name_mask` is False."""
    return jax.tree.map(lambda named: not named, name_mask(params, names))


def adamw(
    schedule: optax.Schedule,
    *,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    no_decay: Collection[str] = (),
    frozen: Collection[str] = (),
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2019), as PyTorch computes it.

    Args:
        schedule: step -> learning rate.
        no_decay: parameter names (last part of the path) without weight decay.
        frozen: parameter names that never change. Their gradient is set to zero first, so
            it does not count in the norm that is clipped either.
        clip_norm: largest global gradient norm; 0 clips nothing.
    """
    undecayed = set(no_decay) | set(frozen)
    return optax.chain(
        freeze_and_clip(frozen, clip_norm),
        optax.scale_by_adam(beta1, beta2, epsilon),
        optax.add_decayed_weights(weight_decay, lambda params: other_mask(params, undecayed)),
        optax.scale_by_learning_rate(schedule),
    )


def anchored(params: Any, held: Callable[[str], bool]) -> Any:
    """Copies of the encoder's parameters that an optimiser recalls, for its state.

    Args:
        params: {"encoder", "head"} as the optimiser's `init` gets them.
        held: of a parameter's name (last part of the path) whether it is kept.

    Returns:
        Like `params`, with optax.MaskedNode for the head and for what is not kept.
    """

    def copied(path, param):
        if path[0].key == "head" or not held(path[-1].key):
            return optax.MaskedNode()
        # A copy: training donates the parameters' own buffers.
        return jnp.array(param, copy=True)

    return jax.tree_util.tree_map_with_path(copied, params)


def freeze_and_clip(frozen: Collection[str], clip_norm: float) -> optax.GradientTransformation:
    """What an optimiser does to the gradient first; `adamw` describes the arguments."""
    return optax.chain(
        optax.masked(optax.set_to_zero(), lambda params: name_mask(params, frozen)),
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    )


@lru_cache
def adamw_of(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW as a recipe says. Cached, so that stages with one recipe share a program."""
    return adamw(
        schedule_of(recipe),
        beta1=recipe.beta1,
        beta2=recipe.beta2,
        epsilon=recipe.epsilon,
        weight_decay=recipe.weight_decay,
        no_decay=recipe.no_decay,
        frozen=recipe.frozen,
        clip_norm=recipe.clip_norm,
    )


def schedule_of(recipe: Recipe) -> optax.Schedule:
    """The learning rate of each step of a recipe."""
    return warmup_linear_schedule(recipe.learning_rate, recipe.steps, recipe.warmup_steps)
