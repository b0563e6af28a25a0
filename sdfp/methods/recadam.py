"""Row "RecAdam": fine-tuning with an AdamW that recalls the weights it starts from, by a quadratic
penalty that fades as the task's weight lambda(t) grows (Chen et al. 2020, "Recall and Learn:
Fine-tuning Deep Pretrained Language Models with Less Forgetting")."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdfp import optim
from sdfp.methods.interface import Method
from sdfp.settings import Recipe, choice, number
from sdfp.types import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.recadam`. The schedule is that of lambda(t), t = 1 at the first step."""

    penalty: float = number(0)
    schedule: str = choice("sigmoid", "linear", "constant")
    steepness: float = number(above=0)
    midpoint: int = number(1)


class RecAdamState(NamedTuple):
    """Adam's moments, and the anchor: copies of the encoder's parameters as `init` saw them."""

    count: jax.Array
    mu: Any
    nu: Any
    anchor: Any
    """Like the parameters, with no array in the head nor where a parameter is frozen."""


@lru_cache
def make_optimizer(recipe: Recipe, settings: Settings) -> optax.GradientTransformation:
    """RecAdam as a recipe says.

    Its anchor is what `init` is given: the weights that fine-tuning starts from, theta_init in a
    row without further pre-training. It travels in the optimiser's state, so that a resumed run
    has it too.

    Raises:
        UserError: at some step the penalty would push the weights away from the anchor.
    """
    _refuse_divergence(recipe, settings)
    return optax.chain(
        optim.freeze_and_clip(recipe.frozen, recipe.clip_norm), scale_by_recadam(recipe, settings)
    )


def scale_by_recadam(recipe: Recipe, settings: Settings) -> optax.GradientTransformation:
    """The sequential update of the published code, gradients as they come.

    With s the learning rate, one step is: Adam's move by s lambda; then s (1 - lambda) penalty of
    the way back to the anchor; then s weight_decay of the way to 0. Epsilon is added to the root
    of the second moment before the bias correction scales it. The head has lambda = 1. With
    lambda = 1 throughout this is AdamW, but that AdamW decays the weights before Adam's move.
    """

    def init(params):
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        anchor = optim.anchored(params, lambda name: name not in recipe.frozen)
        return RecAdamState(jnp.zeros((), jnp.int32), zeros(), zeros(), anchor)

    def update(updates, state, params=None):
        t = state.count + 1
        mu = _average(state.mu, updates, recipe.beta1)
        nu = _average(state.nu, jax.tree.map(jnp.square, updates), recipe.beta2)
        rate = optim.schedule_of(recipe)(state.count)
        correction = jnp.sqrt(1 - recipe.beta2**t) / (1 - recipe.beta1**t)
        weight = task_weight(settings, t)

        def change(param, m, v, anchor, decays):
            held = not isinstance(anchor, optax.MaskedNode)
            size = rate * correction * (weight if held else 1.0)
            new = param - size * m / (jnp.sqrt(v) + recipe.epsilon)
            if held:
                new = new - rate * (1 - weight) * settings.penalty * (new - anchor)
            if decays:
                new = new - rate * recipe.weight_decay * new
            return new - param

        decays = optim.other_mask(params, {*recipe.no_decay, *recipe.frozen})
        updates = jax.tree.map(change, params, mu, nu, state.anchor, decays)
        return updates, RecAdamState(t, mu, nu, state.anchor)

    return optax.GradientTransformation(init, update)


def task_weight(settings: Settings, step) -> jax.Array:
    """lambda(t), the weight of the task against the penalty, from 0 to 1.

    Args:
        settings: of the method.
        step: steps, counted from 1, of any shape.

    Returns:
        float32 of that shape.
    """
    step = jnp.asarray(step, jnp.float32)
    if settings.schedule == "sigmoid":
        return jax.nn.sigmoid(settings.steepness * (step - settings.midpoint))
    if settings.schedule == "linear":
        return jnp.minimum(1.0, step / settings.midpoint)
    return jnp.ones_like(step)


def _average(average, value, decay: float):
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, average, value)


def _refuse_divergence(recipe: Recipe, settings: Settings) -> None:
    """A step multiplies the distance to the anchor by 1 - s (1 - lambda) penalty: it grows where
    that is below -1."""
    steps = np.arange(recipe.steps)
    rate = np.asarray(optim.schedule_of(recipe)(steps), np.float64)
    weight = np.asarray(task_weight(settings, steps + 1), np.float64)
    pull = rate * (1 - weight) * settings.penalty
    worst = int(np.argmax(pull))
    if pull[worst] <= 2 * (1 + 1e-6):  # rates are float32
        return
    fits = 2 / pull[worst]
    raise UserError(
        f"config.method.recadam.penalty: {settings.penalty:g} diverges, at step {worst + 1} "
        f"learning rate * (1 - lambda) * penalty is {pull[worst]:.3g}, above 2; set it to at most "
        f"{_rounded_down(settings.penalty * fits):g}, or config.stages.finetune.learning_rate "
        f"({recipe.learning_rate:g}) to at most {_rounded_down(recipe.learning_rate * fits):g}"
    )


def _rounded_down(value: float) -> float:
    """To three digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.floor(value / unit * (1 + 5e-7)) * unit  # rates are float32


METHOD = Method(settings=Settings, make_optimizer=make_optimizer)
