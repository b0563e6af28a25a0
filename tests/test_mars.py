"""The MARS projection and distance against NumPy and PyTorch, layer by layer."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_runs import (
    FINETUNE,
    GRADIENTS,
    MASKED,
    PARAMS,
    check_resumed,
    compiled,
    flat,
    history,
    trained,
)

from sdfp import optim
from sdfp.methods import mars

SETTINGS = mars.Settings(radius=0.6, head_radius=0.4)
RADIUS = {True: SETTINGS.head_radius, False: SETTINGS.radius}
"""By whether a layer is the head's."""
HUGE = mars.Settings(radius=1e6, head_radius=1e6)
HEADS = 2
MODELS = ("vit", "roberta")
STACKED = {
    f"encoder/blocks/{name}/kernel"
    for name in ("query", "key", "value", "out", "mlp_in", "mlp_out")
}
KERNELS = {
    "vit": STACKED | {"encoder/patch_embed/kernel", "head/kernel"},
    "roberta": STACKED | {"head/dense/kernel", "head/out/kernel"},
}


def layers_of(kernel):
    """[layers, in, out] or [in, out] -> the matrices [in, out]."""
    return list(kernel) if kernel.ndim == 3 else [kernel]


def last(name):
    return name.rsplit("/", 1)[-1]


def numpy_project(name, kernel, initial):
    """One leaf, its layers and their heads taken apart, in the shapes that the paper counts in."""
    head, layers = name.startswith("head/"), []
    for matrix, middle in zip(layers_of(kernel), layers_of(initial), strict=True):
        split, axes = matrix.shape, (0,)
        if name.endswith(("query/kernel", "key/kernel", "value/kernel")):
            split = (len(matrix), HEADS, matrix.shape[1] // HEADS)  # (d, heads, head_dim)
        elif name.endswith("blocks/out/kernel"):
            split, axes = (HEADS, len(matrix) // HEADS, matrix.shape[1]), (0, 1)
        centre = np.zeros(split) if head else middle.reshape(split)
        offset = matrix.reshape(split) - centre
        norm = np.abs(offset).sum(axis=axes, keepdims=True)
        layers.append((centre + offset / np.maximum(1, norm / RADIUS[head])).reshape(matrix.shape))
    return np.stack(layers).reshape(kernel.shape)


def numpy_mars(model, recipe):
    """AdamW, the one that test_optim.py checks, each step followed by the projection in float64."""
    tx, initial = optim.adamw_of(recipe), flat(PARAMS[model])
    params = jax.tree.map(jnp.array, PARAMS[model])
    opt_state = tx.init(params)

    def project(path, p):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name not in KERNELS[model]:
            return p
        p, start = (np.asarray(x, np.float64) for x in (p, initial[name]))
        return jnp.asarray(numpy_project(name, p, start), jnp.float32)

    for gradient in GRADIENTS[model]:
        params, opt_state = compiled(tx)(params, opt_state, gradient)
        params = jax.tree_util.tree_map_with_path(project, params)
    return flat(params)


def assert_same(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    for name in actual:
        np.testing.assert_allclose(actual[name], expected[name], 0, tolerance, err_msg=name)


CASES = [("vit", MASKED), ("vit", FINETUNE), ("roberta", FINETUNE)]
IDS = ["vit-masked", "vit-finetune", "roberta-finetune"]


@pytest.mark.parametrize(("model", "recipe"), CASES, ids=IDS)
def test_mars_is_adamw_and_a_projection(model, recipe):
    ours = trained(mars.make_optimizer(recipe, SETTINGS), model)
    assert_same(ours, numpy_mars(model, recipe))
    # Every kernel did need the projection, and nothing else got one.
    theirs = trained(optim.adamw_of(recipe), model)
    assert {n for n in ours if not np.array_equal(ours[n], theirs[n])} == KERNELS[model]


@pytest.mark.torch
@pytest.mark.parametrize(("model", "recipe"), CASES, ids=IDS)
def test_mars_is_pytorchs_adamw_and_a_projection(model, recipe):
    """On unstacked layers of [out, in], as PyTorch's Linear keeps them."""
    torch = pytest.importorskip("torch")

    def unstacked(tree):
        leaves = flat(tree).items()
        free = {(name, 0): leaf for name, leaf in leaves if name not in KERNELS[model]}
        return free | {
            (name, layer): np.ascontiguousarray(matrix.T)
            for name, leaf in leaves
            if name in KERNELS[model]
            for layer, matrix in enumerate(layers_of(leaf))
        }

    begin = unstacked(PARAMS[model])
    params = {key: torch.tensor(p, requires_grad=True) for key, p in begin.items()}
    trained = {key: p for key, p in params.items() if last(key[0]) not in recipe.frozen}
    groups = [
        {
            "params": [p for (n, _), p in trained.items() if (last(n) in recipe.no_decay) == skip],
            "weight_decay": decay,
        }
        for skip, decay in [(False, recipe.weight_decay), (True, 0.0)]
    ]
    optimizer = torch.optim.AdamW(groups, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon)
    for step, gradient in enumerate(GRADIENTS[model]):
        for key, x in unstacked(gradient).items():
            params[key].grad = torch.tensor(x)
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(trained.values(), recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = np.asarray(optim.schedule_of(recipe)(step)).item()
        optimizer.step()
        with torch.no_grad():
            for (name, layer), weight in params.items():
                if name in KERNELS[model]:
                    head = name.startswith("head/")
                    centre = torch.tensor(begin[name, layer]) * (0.0 if head else 1.0)
                    offset = weight - centre
                    ratio = offset.norm(p=1, dim=1, keepdim=True) / RADIUS[head]
                    weight.copy_(centre + offset / ratio.clamp(min=1.0))
    ours = unstacked(history(mars.make_optimizer(recipe, SETTINGS), model)[-1][0])
    assert_same(ours, {key: p.detach().numpy() for key, p in params.items()})


@pytest.mark.parametrize("model", MODELS)
def test_the_constraint_holds_after_every_step(model):
    initial, reached = flat(PARAMS[model]), set()
    for params, _ in history(mars.make_optimizer(FINETUNE, SETTINGS), model):
        for name in KERNELS[model]:
            head = name.startswith("head/")
            radius = RADIUS[head]
            offset = flat(params)[name].astype(np.float64) - (0 if head else initial[name])
            norm = np.abs(offset).sum(axis=-2)
            assert norm.max() <= radius + 1e-6, name
            if norm.max() >= radius - 1e-6:
                reached.add(name)
    assert reached == KERNELS[model]


def test_the_first_step_holds_the_head_though_its_learning_rate_is_0():
    tight = mars.make_optimizer(FINETUNE, mars.Settings(radius=0.6, head_radius=0.05))
    before, (held, _) = PARAMS["vit"], history(tight, "vit")[0]
    chex.assert_trees_all_equal(held["encoder"], before["encoder"])
    kernel = before["head"]["kernel"]
    assert np.abs(kernel).sum(axis=0).min() > 0.05
    expected = 0.05 * kernel / np.abs(kernel).sum(axis=0, keepdims=True)
    np.testing.assert_allclose(held["head"]["kernel"], expected, atol=1e-8)


def test_inside_the_ball_it_is_adamw_bit_for_bit():
    ours = trained(mars.make_optimizer(FINETUNE, HUGE), "vit")
    chex.assert_trees_all_equal(ours, trained(optim.adamw_of(FINETUNE), "vit"))


def test_units_inside_the_ball_are_left_alone():
    """Only those output units that are outside, each for itself, in each layer."""
    anchor = {"encoder": {"kernel": np.zeros((2, 3, 2), np.float32)}}
    updates = {"encoder": {"kernel": np.ones((2, 3, 2), np.float32)}}
    updates["encoder"]["kernel"][0, :, 0] *= [2, -4, 6]
    tx = mars.projection(FINETUNE, mars.Settings(radius=3.0, head_radius=1.0))
    moved, _ = jax.jit(tx.update)(updates, tx.init(anchor), anchor)
    expected = updates["encoder"]["kernel"].copy()
    expected[0, :, 0] = [0.5, -1, 1.5]
    np.testing.assert_allclose(moved["encoder"]["kernel"], expected, rtol=1e-6)


def test_the_anchor_is_the_start_bit_for_bit():
    for model in MODELS:
        after, opt_state = history(mars.make_optimizer(FINETUNE, SETTINGS), model)[-1]
        anchor, before = flat(opt_state[-1].anchor), flat(PARAMS[model])
        assert anchor.keys() == {n for n in KERNELS[model] if n.startswith("encoder/")}
        for name in anchor:
            np.testing.assert_array_equal(anchor[name], before[name], err_msg=name)
            assert not np.array_equal(flat(after)[name], before[name]), name


def test_frozen_parameters_keep_every_bit():
    """A frozen head is not moved into its ball either."""
    for frozen in (("pos_embed",), ("kernel", "bias")):
        recipe = dataclasses.replace(FINETUNE, frozen=frozen)
        tight = mars.Settings(radius=0.1, head_radius=0.01)
        before, after = flat(PARAMS["vit"]), trained(mars.make_optimizer(recipe, tight), "vit")
        unchanged = {name for name in after if after[name].tobytes() == before[name].tobytes()}
        assert unchanged == {name for name in after if last(name) in frozen}


def test_the_state_is_arrays_that_a_checkpoint_takes(tmp_path):
    check_resumed(mars.make_optimizer(FINETUNE, SETTINGS), tmp_path)


def test_one_recipe_is_one_optimiser():
    same = dataclasses.replace(SETTINGS)
    assert mars.make_optimizer(FINETUNE, SETTINGS) is mars.make_optimizer(FINETUNE, same)


# --- the distance


@pytest.mark.parametrize("model", MODELS)
def test_the_distance_of_two_encoders(model):
    encoder = PARAMS[model]["encoder"]
    other = jax.tree.map(lambda p, g: p + g, encoder, GRADIENTS[model][0]["encoder"])
    expected, theirs = 0.0, flat(encoder)
    for name, leaf in flat(other).items():
        if f"encoder/{name}" in KERNELS[model]:
            for w, w_star in zip(layers_of(leaf), layers_of(theirs[name]), strict=True):
                expected += max(np.abs(w[:, j] - w_star[:, j]).sum() for j in range(w.shape[1]))
    actual = jax.jit(mars.distance)(other, encoder)
    chex.assert_shape(actual, ())
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert mars.distance(encoder, encoder) == 0


def test_the_distance_by_hand_and_its_gradient():
    kernel = jnp.array([[1.0, -2.0], [3.0, 1.0]])  # sums over `in`: 4 and 3
    params = {
        "dense": {"kernel": kernel, "bias": jnp.ones(2)},
        "blocks": {"kernel": jnp.stack([-2 * kernel, kernel[:, ::-1]]), "scale": jnp.ones((2, 2))},
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    distance, gradient = jax.value_and_grad(mars.distance)(params, zeros)
    assert distance == 4 + 8 + 4
    np.testing.assert_array_equal(gradient["dense"]["kernel"], [[1, 0], [1, 0]])
    np.testing.assert_array_equal(
        gradient["blocks"]["kernel"], [[[-1, 0], [-1, 0]], [[0, 1], [0, 1]]]
    )
    assert not gradient["dense"]["bias"].any()
    assert not gradient["blocks"]["scale"].any()
