"""RecAdam against NumPy and PyTorch, its anchor, and the learning rates it refuses."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training
from optimizer_runs import (
    FINETUNE,
    GRADIENTS,
    MASKED,
    PARAMS,
    STEPS,
    check_resumed,
    flat,
    history,
    trained,
)

from configs import common
from sdfp import optim
from sdfp.methods import recadam
from sdfp.types import UserError

SETTINGS = recadam.Settings(penalty=30.0, schedule="sigmoid", steepness=0.3, midpoint=12)


def rate(recipe, t):
    """The learning rate of step t, counted from 1."""
    if t - 1 < recipe.warmup_steps:
        return recipe.learning_rate * (t - 1) / recipe.warmup_steps
    return recipe.learning_rate * (recipe.steps - t + 1) / (recipe.steps - recipe.warmup_steps)


def last(name):
    return name.rsplit("/", 1)[-1]


LAMBDAS = {
    "sigmoid": lambda t, s: 1 / (1 + np.exp(-s.steepness * (t - s.midpoint))),
    "linear": lambda t, s: min(1.0, t / s.midpoint),
    "constant": lambda t, s: 1.0,
}


def numpy_recadam(recipe, settings, params, gradients):
    """The published update, parameter by parameter, in float64."""
    theta = {name: p.astype(np.float64) for name, p in flat(params).items()}
    theta_star = {name: p.copy() for name, p in theta.items()}
    m, v = ({name: np.zeros_like(p) for name, p in theta.items()} for _ in "mv")
    for t, gradient in enumerate(gradients, 1):
        g = {n: x.astype(np.float64) for n, x in flat(gradient).items()}
        g = {n: x for n, x in g.items() if last(n) not in recipe.frozen}
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        clip = min(1.0, recipe.clip_norm / norm) if recipe.clip_norm else 1.0
        s, lam = rate(recipe, t), LAMBDAS[settings.schedule](t, settings)
        for n in g:
            m[n] = recipe.beta1 * m[n] + (1 - recipe.beta1) * clip * g[n]
            v[n] = recipe.beta2 * v[n] + (1 - recipe.beta2) * (clip * g[n]) ** 2
            head = n.startswith("head/")
            size = s * np.sqrt(1 - recipe.beta2**t) / (1 - recipe.beta1**t) * (1 if head else lam)
            theta[n] = theta[n] - size * m[n] / (np.sqrt(v[n]) + recipe.epsilon)
            if not head:
                theta[n] = theta[n] - s * (1 - lam) * settings.penalty * (theta[n] - theta_star[n])
            if last(n) not in recipe.no_decay:
                theta[n] = theta[n] - s * recipe.weight_decay * theta[n]
    return theta


def assert_same(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    for name in actual:
        np.testing.assert_allclose(actual[name], expected[name], 0, tolerance, err_msg=name)


CASES = [
    pytest.param("vit", MASKED, "sigmoid", id="vit-masked"),
    pytest.param("vit", FINETUNE, "linear", id="vit-finetune-linear"),
    pytest.param("roberta", FINETUNE, "sigmoid", id="roberta-finetune"),
    pytest.param("roberta", MASKED, "constant", id="roberta-masked-constant"),
]


@pytest.mark.parametrize(("model", "recipe", "schedule"), CASES)
def test_recadam_is_the_published_update(model, recipe, schedule):
    settings = dataclasses.replace(SETTINGS, schedule=schedule)
    after = trained(recadam.make_optimizer(recipe, settings), model)
    assert_same(after, numpy_recadam(recipe, settings, PARAMS[model], GRADIENTS[model]))


def torch_recadam(torch, params, recipe, settings):
    """RecAdam as a PyTorch optimiser: a group per parameter, `start` where there is a penalty."""
    anneal = lambda t: LAMBDAS[settings.schedule](t, settings)

    class RecAdam(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self):  # pyright: ignore[reportIncompatibleMethodOverride]
            for group in self.param_groups:
                (p,), start, state = group["params"], group["start"], self.state
                if not state[p]:
                    state[p] = {"t": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                state[p]["t"] += 1
                t, m, v = state[p].values()
                m.lerp_(p.grad, 1 - recipe.beta1)
                v.mul_(recipe.beta2).addcmul_(p.grad, p.grad, value=1 - recipe.beta2)
                lam = 1.0 if start is None else anneal(t)
                size = group["lr"] * lam * (1 - recipe.beta2**t) ** 0.5 / (1 - recipe.beta1**t)
                p.addcdiv_(m, v.sqrt().add_(recipe.epsilon), value=-size)
                if start is not None:
                    p.lerp_(start, group["lr"] * (1 - lam) * settings.penalty)
                p.mul_(1 - group["lr"] * group["weight_decay"])

    groups = [
        {
            "params": [p],
            "start": None if name.startswith("head/") else p.detach().clone(),
            "weight_decay": 0.0 if last(name) in recipe.no_decay else recipe.weight_decay,
        }
        for name, p in params.items()
    ]
    return RecAdam(groups, {"lr": 0.0})


@pytest.mark.torch
@pytest.mark.parametrize(("model", "recipe", "schedule"), CASES)
def test_recadam_is_a_pytorch_optimiser(model, recipe, schedule):
    torch = pytest.importorskip("torch")
    settings = dataclasses.replace(SETTINGS, schedule=schedule)
    params = {n: torch.tensor(p, requires_grad=True) for n, p in flat(PARAMS[model]).items()}
    free = {n: p for n, p in params.items() if last(n) not in recipe.frozen}
    optimizer = torch_recadam(torch, free, recipe, settings)
    for t, gradient in enumerate(GRADIENTS[model], 1):
        for name, x in flat(gradient).items():
            params[name].grad = torch.tensor(x)
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(free.values(), recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, t)
        optimizer.step()
    after = trained(recadam.make_optimizer(recipe, settings), model)
    assert_same(after, {n: p.detach().numpy() for n, p in params.items()})


def test_the_anchor_is_the_start_bit_for_bit_and_frozen_parameters_stay():
    before = flat(PARAMS["vit"])
    for recipe in (MASKED, FINETUNE):
        after, (_, state) = history(recadam.make_optimizer(recipe, SETTINGS), "vit")[-1]
        after, anchor = flat(after), flat(state.anchor)
        stay = {name for name in after if after[name].tobytes() == before[name].tobytes()}
        assert stay == {name for name in before if last(name) in recipe.frozen}
        assert anchor.keys() == {name for name in before if name.startswith("encoder/")} - stay
        for name in anchor:
            np.testing.assert_array_equal(anchor[name], before[name], err_msg=name)
        assert (state.count, state.count.dtype) == (STEPS, np.int32)


def test_the_state_is_arrays_that_a_checkpoint_takes(tmp_path):
    check_resumed(recadam.make_optimizer(FINETUNE, SETTINGS), tmp_path)


def test_without_a_penalty_it_is_adamw():
    """Up to where epsilon is added; and AdamW decays before Adam's move, not after."""
    constant = dataclasses.replace(SETTINGS, schedule="constant")
    recipe = dataclasses.replace(FINETUNE, epsilon=1e-12, weight_decay=0.0)
    ours = trained(recadam.make_optimizer(recipe, constant), "roberta")
    assert_same(ours, trained(optim.adamw_of(recipe), "roberta"), tolerance=2e-6)


def test_the_task_weight():
    step = np.arange(1, 2001)
    sigmoid = dataclasses.replace(SETTINGS, steepness=0.5, midpoint=250)
    weight = np.asarray(recadam.task_weight(sigmoid, step))
    assert weight[249] == 0.5
    np.testing.assert_allclose(weight[250], 1 / (1 + np.exp(-0.5)), rtol=1e-6)
    assert 0 <= weight[0] < 1e-30
    assert weight[-1] == 1
    steep = dataclasses.replace(sigmoid, steepness=1e4)
    assert set(np.asarray(recadam.task_weight(steep, step)).tolist()) == {0.0, 0.5, 1.0}
    linear = np.asarray(recadam.task_weight(dataclasses.replace(sigmoid, schedule="linear"), step))
    np.testing.assert_allclose(linear[[0, 124, 249, 250, 999]], [1 / 250, 0.5, 1, 1, 1])


# --- learning rates that diverge

PUBLISHED = recadam.Settings(penalty=5000.0, schedule="sigmoid", steepness=0.5, midpoint=250)
LONG = training.recipe(common.finetune_recipe(), steps=1000, warmup_steps=0)


def with_rate(learning_rate, **changes):
    return dataclasses.replace(LONG, learning_rate=learning_rate, **changes)


def test_diverging_learning_rates_are_refused():
    recadam.make_optimizer(with_rate(1e-4), PUBLISHED)  # 0.5
    at_limit = recadam.make_optimizer(with_rate(4e-4), PUBLISHED)  # 2
    assert at_limit is recadam.make_optimizer(with_rate(4e-4), dataclasses.replace(PUBLISHED))
    with pytest.raises(UserError) as told:
        recadam.make_optimizer(with_rate(1e-3), PUBLISHED)
    assert str(told.value) == (
        "config.method.recadam.penalty: 5000 diverges, at step 1 learning rate * (1 - lambda) * "
        "penalty is 5, above 2; set it to at most 2000, or config.stages.finetune.learning_rate "
        "(0.001) to at most 0.0004"
    )


@pytest.mark.parametrize("schedule", ["sigmoid", "linear"])
@pytest.mark.parametrize(("learning_rate", "warmup"), [(3.3e-3, 0), (7.7e-3, 90)])
def test_what_a_refusal_advises_works(schedule, learning_rate, warmup):
    settings = dataclasses.replace(PUBLISHED, schedule=schedule)
    recipe = with_rate(learning_rate, warmup_steps=warmup)
    with pytest.raises(UserError) as told:
        recadam.make_optimizer(recipe, settings)
    numbers = re.search(r"step (\d+) .* at most (\S+), .* at most (\S+)$", str(told.value))
    assert numbers
    step, penalty, largest_rate = (float(each) for each in numbers.groups())
    pull = lambda t: rate(recipe, t) * (1 - LAMBDAS[schedule](t, settings))
    assert step == 1 + np.argmax([pull(t) for t in range(1, LONG.steps + 1)])
    for penalty_, rate_ in [(penalty, learning_rate), (settings.penalty, largest_rate)]:
        make = lambda above, penalty_=penalty_, rate_=rate_: recadam.make_optimizer(
            dataclasses.replace(recipe, learning_rate=rate_),
            dataclasses.replace(settings, penalty=above * penalty_),
        )
        make(1.0)
        with pytest.raises(UserError):
            make(1.02)


def test_a_rate_that_is_high_only_without_penalty_is_taken():
    early = dataclasses.replace(PUBLISHED, midpoint=10)
    recadam.make_optimizer(with_rate(1e-3, warmup_steps=500), early)
    recadam.make_optimizer(with_rate(1.0), dataclasses.replace(PUBLISHED, schedule="constant"))
    recadam.make_optimizer(with_rate(1.0), dataclasses.replace(PUBLISHED, penalty=0.0))


@pytest.mark.parametrize(("learning_rate", "grows"), [(3.8e-4, False), (4.4e-4, True)])
def test_the_limit_is_where_it_diverges(learning_rate, grows):
    recipe = with_rate(learning_rate, weight_decay=0.0)
    tx = recadam.scale_by_recadam(recipe, PUBLISHED)
    anchor = {"encoder": {"kernel": jnp.ones((2, 3))}, "head": {"bias": jnp.ones(3)}}
    opt_state = tx.init(anchor)
    params, nothing = (jax.tree.map(lambda x, a=a: a * x, anchor) for a in (1.5, 0.0))
    update = jax.jit(tx.update)
    for _ in range(20):
        updates, opt_state = update(nothing, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
    distance = np.abs(params["encoder"]["kernel"] - anchor["encoder"]["kernel"]).max()
    assert (distance > 2) if grows else (distance < 0.2)
    np.testing.assert_array_equal(params["head"]["bias"], 1.5)  # nothing pulls the head
