"""A training run small enough for tests, through the real loops."""

import dataclasses
import functools

import jax
import numpy as np

from configs import common
from sdfp import optim
from sdfp.data import loading, pixels
from sdfp.data.interface import Split
from sdfp.settings import Recipe
from sdfp.train import loop, step

KEY = jax.random.key(3)
ORDER_SEED = 5


@functools.cache
def prepare_images(side):
    return pixels.make_prepare((0.5, 0.4, 0.6), (0.25, 0.3, 0.2), side)


PREPARE = prepare_images(16)


def recipe(config, **changes) -> Recipe:
    """A recipe of configs/common.py with a few values changed."""
    return dataclasses.replace(Recipe(**config), **changes)


def masked(**changes) -> Recipe:
    """The authors' recipe, shorter. A gradient that is 0 but for rounding (a key's bias) is
    blown up by AdamW; the larger epsilon stops that, so that all parameters can be compared."""
    small = {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "epsilon": 1e-3}
    return recipe(common.masked_recipe(), **{**small, **changes})


def finetune(**changes) -> Recipe:
    small = {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "epsilon": 1e-3}
    return recipe(common.finetune_recipe(), **{**small, "warmup_steps": 2, **changes})


def waves(examples: int, side: int = 16, classes: int = 3) -> Split:
    """Colour images of random plane waves: something that a model can learn."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    frequency, phase = rng.uniform(-9, 9, (2, examples, 3)), rng.uniform(0, 6, (examples, 3))
    angle = np.einsum("kec,kyx->eyxc", frequency, np.stack([y, x])) + phase[:, None, None]
    arrays = {
        "image": (127.5 * (1 + np.sin(angle))).astype(np.uint8),
        "label": rng.integers(classes, size=examples).astype(np.int32),
    }
    return Split(arrays, tuple(map(str, range(examples))))


def feed(split: Split, devices) -> loading.Feed:
    return loading.open_feed(split, devices, resident_gb=1.0)


def train(
    devices,
    params,
    loss_fn,
    recipe: Recipe,
    feed: loading.Feed,
    *,
    frozen=None,
    per_example=None,
    prepare=None,
    make_optimizer=None,
    steps_per_call=3,
    pause_every=1000,
):
    """A whole stage as `stage.run_stage` runs it, without its files.

    Returns:
        The last state on the host, and {term: [steps]}.
    """
    tx = (make_optimizer or optim.adamw_of)(recipe)
    prepare = prepare or prepare_images(feed.split.arrays["image"].shape[1])
    prepare = loop.make_prepare(prepare, recipe.augment, per_example)
    calls = loop.train(
        devices.place(jax.device_get(step.init_state(params, tx))),
        devices.place(frozen),
        feed,
        KEY,
        compiled=loop.compile_train(devices, loss_fn, prepare, tx, ()),
        recipe=recipe,
        order=loop.Order(ORDER_SEED, recipe.batch_size, recipe.accumulate, devices.count),
        devices=devices,
        steps_per_call=steps_per_call,
        pause_every=(pause_every,),
    )
    done = list(calls)
    _, state, _ = done[-1]
    history = [metrics for _, _, metrics in done]
    joined = {name: np.concatenate([m[name] for m in history]) for name in history[0]}
    return devices.fetch(state), joined
