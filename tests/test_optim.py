"""AdamW, its masks and its schedule, against NumPy and against PyTorch."""

import jax
import numpy as np
import pytest
import training

from configs import common
from sdfp import optim

# Two stacked layers, as in the models: a bias has two dimensions.
SHAPES = {
    "encoder": {
        "blocks": {
            "query": {"kernel": (2, 4, 4), "bias": (2, 4)},
            "norm_mlp": {"scale": (2, 4), "bias": (2, 4)},
        },
        "cls_token": (1, 1, 4),
        "pos_embed": (1, 5, 4),
    },
    "head": {"kernel": (4, 3), "bias": (3,)},
}
STEPS = 30
MASKED = training.recipe(common.masked_recipe(), steps=STEPS, learning_rate=0.05, weight_decay=0.3)
FINETUNE = training.recipe(
    common.finetune_recipe(), steps=STEPS, warmup_steps=4, learning_rate=0.05, weight_decay=0.3
)
RECIPES = [pytest.param(MASKED, id="masked"), pytest.param(FINETUNE, id="finetune")]


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    draw = lambda shape: (scale * rng.normal(size=shape)).astype(np.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


PARAMS = tree(0)
GRADIENTS = [tree(1 + step, scale=0.2) for step in range(STEPS)]


def flat(tree):
    return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}


def named(names, tree):
    """The leaves called one of `names`, by the end of their path."""
    return {path for path in flat(tree) if path.rsplit("'", 2)[-2] in names}


def rate(recipe, step):
    if step < recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    return recipe.learning_rate * (recipe.steps - step) / (recipe.steps - recipe.warmup_steps)


def ours(recipe, gradients, params=PARAMS):
    tx = optim.adamw_of(recipe)
    opt_state = tx.init(params)

    @jax.jit
    def update(params, opt_state, gradient):
        updates, opt_state = tx.update(gradient, opt_state, params)
        return jax.tree.map(lambda p, u: p + u, params, updates), opt_state

    for gradient in gradients:
        params, opt_state = update(params, opt_state, gradient)
    return flat(jax.device_get(params))


def numpy_adamw(recipe, gradients):
    """Loshchilov & Hutter 2019, algorithm 2, in float64."""
    params = {name: p.astype(np.float64) for name, p in flat(PARAMS).items()}
    m, v = ({name: np.zeros_like(p) for name, p in params.items()} for _ in "mv")
    frozen, undecayed = named(recipe.frozen, PARAMS), named(recipe.no_decay, PARAMS)
    for step, gradient in enumerate(gradients):
        g = {name: x.astype(np.float64) for name, x in flat(gradient).items() if name not in frozen}
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        clip = min(1.0, recipe.clip_norm / norm) if recipe.clip_norm else 1.0
        for name, x in g.items():
            m[name] = recipe.beta1 * m[name] + (1 - recipe.beta1) * clip * x
            v[name] = recipe.beta2 * v[name] + (1 - recipe.beta2) * (clip * x) ** 2
            m_hat = m[name] / (1 - recipe.beta1 ** (step + 1))
            v_hat = v[name] / (1 - recipe.beta2 ** (step + 1))
            decay = 0.0 if name in undecayed else recipe.weight_decay
            params[name] -= rate(recipe, step) * (
                m_hat / (np.sqrt(v_hat) + recipe.epsilon) + decay * params[name]
            )
    return params


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name in actual:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("recipe", RECIPES)
def test_adamw_is_the_published_algorithm(recipe):
    assert_same(ours(recipe, GRADIENTS), numpy_adamw(recipe, GRADIENTS))


@pytest.mark.torch
@pytest.mark.parametrize("recipe", RECIPES)
def test_adamw_is_pytorchs(recipe):
    torch = pytest.importorskip("torch")
    params = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in flat(PARAMS).items()}
    trained = {name: p for name, p in params.items() if name not in named(recipe.frozen, PARAMS)}
    undecayed = named(recipe.no_decay, PARAMS)
    groups = [
        {"params": [trained[n] for n in trained if (n in undecayed) == skip], "weight_decay": decay}
        for skip, decay in [(False, recipe.weight_decay), (True, 0.0)]
    ]
    optimizer = torch.optim.AdamW(groups, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon)
    for step, gradient in enumerate(GRADIENTS):
        for name, x in flat(gradient).items():
            params[name].grad = torch.tensor(x)
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(trained.values(), recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        optimizer.step()
    assert_same(ours(recipe, GRADIENTS), {n: p.detach().numpy() for n, p in params.items()})


def test_weight_decay_goes_by_name():
    # Without gradients only the decay moves a parameter.
    nothing = jax.tree.map(np.zeros_like, PARAMS)
    for recipe, decayed_names in [
        (MASKED, {"kernel", "cls_token"}),
        (FINETUNE, {"kernel", "scale"}),
    ]:
        after, before = ours(recipe, [nothing] * 3), flat(PARAMS)
        moved = {name for name in after if not np.array_equal(after[name], before[name])}
        assert moved == named(decayed_names, PARAMS)


def test_frozen_parameters_keep_every_bit():
    after, before = ours(MASKED, GRADIENTS), flat(PARAMS)
    unchanged = {name for name in after if np.array_equal(after[name], before[name])}
    assert unchanged == named({"pos_embed"}, PARAMS)


def test_frozen_parameters_do_not_count_in_the_clipped_norm():
    recipe = training.recipe(common.masked_recipe(), steps=STEPS, clip_norm=0.5)
    loud = [{**g, "encoder": {**g["encoder"]}} for g in GRADIENTS]
    for gradient in loud:
        gradient["encoder"]["pos_embed"] = 1e4 * gradient["encoder"]["pos_embed"]
    quiet_result, loud_result = ours(recipe, GRADIENTS), ours(recipe, loud)
    for name in quiet_result:
        np.testing.assert_array_equal(quiet_result[name], loud_result[name], err_msg=name)


def test_clip_scales_only_gradients_above_the_norm():
    # Adam hides a constant factor of the gradient, so look at its first moment.
    def first_moment(gradient, clip_norm):
        tx = optim.adamw_of(training.recipe(common.masked_recipe(), clip_norm=clip_norm, frozen=()))
        _, opt_state = jax.jit(tx.update)(gradient, tx.init(PARAMS), PARAMS)
        (adam,) = (s for s in opt_state if hasattr(s, "mu"))
        return np.concatenate([np.ravel(x) / 0.1 for x in jax.tree.leaves(adam.mu)])

    gradient = GRADIENTS[0]
    plain = np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)])
    norm = np.linalg.norm(plain)
    np.testing.assert_allclose(first_moment(gradient, 0.0), plain, rtol=1e-5)
    np.testing.assert_allclose(first_moment(gradient, float(norm) * 1.1), plain, rtol=1e-5)
    np.testing.assert_allclose(first_moment(gradient, float(norm) / 4), plain / 4, rtol=1e-5)


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0), (20, 5), (20, 19), (7, 1), (1, 0)])
def test_schedule_by_hand(steps, warmup):
    recipe = training.recipe(common.masked_recipe(), steps=steps, warmup_steps=warmup)
    schedule = optim.warmup_linear_schedule(recipe.learning_rate, steps, warmup)
    expected = [rate(recipe, step) for step in range(steps + 1)]
    np.testing.assert_allclose(list(map(schedule, range(steps + 1))), expected, atol=1e-10)
    assert expected[steps] == 0
    assert expected[warmup] == recipe.learning_rate


@pytest.mark.torch
@pytest.mark.parametrize(("steps", "warmup"), [(20, 0), (20, 5), (20, 19)])
def test_schedule_is_transformers(steps, warmup):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    schedule = optim.warmup_linear_schedule(0.1, steps, warmup)
    for step in range(steps + 3):
        np.testing.assert_allclose(schedule(step), theirs.get_last_lr()[0], atol=1e-8)
        optimizer.step()
        theirs.step()
