"""The rows of Table 3: which stages they are, and two of them trained. Losses: the next file."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vit
import training
from fake_fit import Fit

from sdfp import algorithm, parallel
from sdfp.methods import (
    distill_only,
    further_pretrain_x2,
    mars,
    prediction_matching,
    weight_matching_l2,
    weight_matching_mars,
)
from sdfp.methods.interface import NoSettings
from sdfp.models import vit_mae
from sdfp.train import loop

ROWS = {
    "distill_only": (distill_only, {"features": "all"}, {"features": "cls"}),
    "further_pretrain_x2": (further_pretrain_x2, {}, {}),
    "prediction_matching": (prediction_matching, {"weight": 0.5}, {"weight": 2.0}),
    "weight_matching_l2": (weight_matching_l2, {"weight": 0.5}, {"weight": 2.0}),
    "weight_matching_mars": (weight_matching_mars, {"weight": 0.5}, {"weight": 2.0}),
}
STUDENTS = [name for name in ROWS if name != "further_pretrain_x2"]
BACKBONE = vit_mae.make(tiny_vit.settings(), jnp.float32)


def stages(name, backbone, init=None, changed=False):
    """The calls of `fit` that a row makes, and what it returns."""
    module, settings, other = ROWS[name]
    settings = module.METHOD.settings(**(other if changed else settings))
    fit = Fit()
    result = module.METHOD.pretrain(init, backbone=backbone, fit=fit, settings=settings)
    return fit.calls, result


EXPECTED = {
    "distill_only": {
        "loss": distill_only.distill_loss(BACKBONE, "all"),
        "frozen": "encoder of further_pretrain",
        "per_example": algorithm.teacher_features(BACKBONE, "all"),
        "identity": {"features": "all"},
    },
    "prediction_matching": {
        "loss": prediction_matching.matching_loss(BACKBONE),
        "frozen": {
            "encoder": "encoder of further_pretrain",
            "decoder": "decoder of further_pretrain",
        },
        "weights": {"matching": 0.5},
    },
    "weight_matching_l2": {
        "loss": weight_matching_l2.matching_loss(BACKBONE, weight_matching_l2.squared_distance),
        "frozen": "encoder of further_pretrain",
        "weights": {"matching": 0.5},
    },
    "weight_matching_mars": {
        "loss": weight_matching_l2.matching_loss(BACKBONE, mars.distance),
        "frozen": "encoder of further_pretrain",
        "weights": {"matching": 0.5},
    },
}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_teacher_as_all_rows_have_it_then_one_stage_from_the_start(name):
    init = {"encoder": "theta", "decoder": "phi"}
    calls, result = stages(name, BACKBONE, init)
    teacher = {"name": "further_pretrain", "loss": algorithm.masked_loss(BACKBONE), "params": init}
    student = {
        "name": name,
        "params": init,
        "recipe": "self_distill",
        "stream": "self_distill_1",
        **EXPECTED[name],
    }
    # `==` of functions is identity: a loss made twice would be compiled twice.
    assert calls == [teacher, student]
    assert calls[1]["params"] is init
    assert result == {"encoder": f"encoder of {name}", "decoder": f"decoder of {name}"}


def test_twice_the_steps_are_one_masked_stage():
    init = {"encoder": "theta", "decoder": "phi"}
    calls, result = stages("further_pretrain_x2", BACKBONE, init)
    expected = {
        "name": "further_pretrain_x2",
        "loss": algorithm.masked_loss(BACKBONE),
        "params": init,
        "recipe": "further_pretrain",
        "stream": "further_pretrain",
        "times": 2,
    }
    assert calls == [expected]
    assert result["encoder"] == "encoder of further_pretrain_x2"


@pytest.mark.parametrize("name", ROWS)
def test_a_rows_stages_can_be_listed_without_a_model(name):
    without, _ = stages(name, None)
    with_model, _ = stages(name, BACKBONE)
    assert [call["name"] for call in without] == [call["name"] for call in with_model]
    assert without[-1]["name"] == name


@pytest.mark.parametrize("name", ROWS)
def test_every_setting_changes_the_stages_identity(name):
    module, *_ = ROWS[name]
    fields = dataclasses.fields(module.METHOD.settings)
    assert all(field.default is field.default_factory is dataclasses.MISSING for field in fields)
    (before, _), (after, _) = stages(name, None), stages(name, None, changed=True)
    identity = lambda call: (call.get("weights"), call.get("identity"))
    assert (identity(before[-1]) != identity(after[-1])) == bool(fields)
    assert len(fields) == (module.METHOD.settings is not NoSettings)


class Plain:
    """AdamW as the recipe says, in float64 and parameter by parameter."""

    def __init__(self, params, recipe):
        self.recipe, self.step = recipe, 0
        self.params = jax.tree.map(np.float64, params)
        self.m, self.v = (jax.tree.map(np.zeros_like, self.params) for _ in range(2))

    def update(self, gradient):
        r, name = self.recipe, lambda path: path[-1].key
        rate = r.learning_rate * (1 - self.step / r.steps)
        self.step += 1
        mean = lambda beta, old, new: jax.tree.map(
            lambda o, n: beta * o + (1 - beta) * np.float64(n), old, new
        )
        self.m = mean(r.beta1, self.m, gradient)
        self.v = mean(r.beta2, self.v, jax.tree.map(np.square, gradient))

        def moved(path, value, m, v):
            if name(path) == "pos_embed":
                return value
            decay = r.weight_decay if name(path) not in ("bias", "scale") else 0.0
            m_hat, v_hat = m / (1 - r.beta1**self.step), v / (1 - r.beta2**self.step)
            return value - rate * (m_hat / (np.sqrt(v_hat) + r.epsilon) + decay * value)

        self.params = jax.tree_util.tree_map_with_path(moved, self.params, self.m, self.v)


def plain_distill(params, teacher, image, mask):
    del mask
    batch = {"image": image, "index": None}
    of = lambda encoder: BACKBONE.features(encoder, batch, None, False)
    return ((of(params["encoder"]) - of(teacher)) ** 2).sum(1).mean()


def plain_matching(params, teacher, image, mask):
    batch = {"image": image, "index": None}
    target = jax.vmap(lambda patches, hidden: patches[hidden])(
        vit_mae.patchify(image, 4), mask.hidden
    )
    std = jnp.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    target = (target - target.mean(-1, keepdims=True)) / std
    masked = ((BACKBONE.reconstruct(params, batch, mask, None, False) - target) ** 2).mean()
    pairs = zip(*map(jax.tree.leaves, (params["encoder"], teacher)), strict=True)
    return masked + sum(((one - other) ** 2).sum() for one, other in pairs)


def batches(split, steps):
    """Images and masks of each step: the order and the keys of the real loop."""
    for number in range(steps):
        drawn = loop.Order(training.ORDER_SEED, 8, 1, 1).batch(number, len(split))
        index = drawn["index"][drawn["weight"] > 0]
        _, key = jax.random.split(jax.random.fold_in(training.KEY, number))
        mask = draw(index, jax.random.split(key)[0])
        pixels = split.arrays["image"][index] / 255
        image = (pixels - np.array([0.5, 0.4, 0.6])) / np.array([0.25, 0.3, 0.2])
        yield np.float32(image), mask


draw = jax.jit(lambda index, key: BACKBONE.mask({"index": index}, key))


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("distill_only", plain_distill),
        pytest.param("weight_matching_l2", plain_matching, marks=pytest.mark.slow),
    ],
)
def test_training_is_that_of_a_plain_loop(name, plain):
    """24 steps over 20 images, the last batch of an epoch smaller."""
    steps, devices, split = 24, parallel.make("jit", 1), training.waves(20)
    # Epsilon: without it AdamW makes full steps of gradients that are all rounding.
    recipe = training.masked(steps=steps, learning_rate=5e-3, epsilon=1e-2)
    init, teacher = (jax.device_get(BACKBONE.init(jax.random.key(i))) for i in (0, 1))
    call = stages(name, BACKBONE, init, changed=True)[0][-1]
    state, metrics = training.train(
        devices,
        init,
        call["loss"],
        recipe,
        training.feed(split, devices),
        frozen=teacher["encoder"],
        per_example=call.get("per_example"),
    )
    loop_, history = Plain(init, recipe), []
    gradient = jax.jit(jax.value_and_grad(plain))
    for image, mask in batches(split, steps):
        params = jax.tree.map(np.float32, loop_.params)
        value, found = gradient(params, teacher["encoder"], image, mask)
        loop_.update(found)
        history.append(float(value))
    np.testing.assert_allclose(metrics["loss"], history, rtol=1e-5)
    chex.assert_trees_all_close(state.params, loop_.params, rtol=1e-5, atol=1e-5)
    assert history[-1] < 0.8 * history[0]
