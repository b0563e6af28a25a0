"""The real, compiled stages against PyTorch: same weights, images and masks, step by step.

The recipes are those of configs/common.py with the length and the learning rate changed.
"""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vit
import training

from configs import common
from sdfp import algorithm, parallel
from sdfp.models import vit_mae
from sdfp.train import loop

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch_reference  # noqa: E402

pytestmark = pytest.mark.torch

SETTINGS = tiny_vit.settings(
    **{"image_size": 32, "patch_size": 8, "dim": 32, "depth": 3, "heads": 4, "mlp_dim": 64},
    **{"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2, "decoder_mlp_dim": 32},
    layer_norm_eps=1e-12,
)
BACKBONE = vit_mae.make(SETTINGS, jnp.float32)
DEVICES = parallel.make("jit", 1)
SPLIT = training.waves(20, side=32)  # batches of 8, 8 and 4
TEACHER_STEPS, STUDENT_STEPS, FINETUNE_STEPS = 20, 50, 20
RATE = 1.5e-3  # ten times the authors', for a model this small to move in 50 steps


def from_torch(model):
    params, renaming = BACKBONE.from_torch(torch_reference.weights(model))
    assert not renaming.missing
    return params


def examples_of(step):
    """The examples of a step, padding left out."""
    batch = loop.Order(training.ORDER_SEED, 8, 1, 1).batch(step, len(SPLIT))
    return batch["index"][batch["weight"] > 0]


def images_of(index):
    pixels = SPLIT.arrays["image"][index] / 255
    normalised = (pixels - np.array([0.5, 0.4, 0.6])) / np.array([0.25, 0.3, 0.2])
    return torch.tensor(normalised.transpose(0, 3, 1, 2).astype(np.float32))


@functools.partial(jax.jit, static_argnums=2)
def noise_of(step, index, splits):
    """The numbers that decide the masks of a step: our own draws, one row per example."""
    _, key = jax.random.split(jax.random.fold_in(training.KEY, step))
    for _ in range(splits):
        key, _ = jax.random.split(key)
    draw = lambda i: jax.random.uniform(jax.random.fold_in(key, i), (SETTINGS.patches,))
    return jax.vmap(draw)(index)


def masked_batches(steps, splits):
    batches = []
    for step in range(steps):
        index = examples_of(step)
        padded = np.zeros(8, np.int32)
        padded[: len(index)] = index
        noise = np.array(noise_of(step, padded, splits))[: len(index)]
        batches.append((images_of(index), torch.tensor(noise)))
    return batches


def assert_same_losses(ours, theirs, terms):
    worst = {}
    for term in terms:
        expected = np.array([step[term] for step in theirs])
        assert ours[term].shape == expected.shape
        worst[term] = np.max(np.abs(ours[term] / expected - 1))
    print("largest relative difference of a step's loss:", worst)
    assert max(worst.values()) < 1e-4, worst


def assert_same_params(ours, theirs, start):
    """Close on the scale of what training changed, parameter by parameter.

    The biases of keys are left out: softmax ignores them, so their gradient is rounding noise,
    which AdamW scales up to full steps.
    """
    theirs, start = (dict(jax.tree.leaves_with_path(tree)) for tree in (theirs, start))
    worst = {}
    for path, value in jax.tree.leaves_with_path(ours):
        name = jax.tree_util.keystr(path)
        if "'key']['bias']" in name:
            continue
        moved = np.linalg.norm(theirs[path] - start[path])
        if "pos_embed" in name and moved == 0:
            np.testing.assert_array_equal(value, start[path])  # frozen
        else:
            worst[name] = np.linalg.norm(value - theirs[path]) / moved
    print("largest relative difference of a parameter's change:", max(worst.values()))
    assert len(worst) > 10
    assert max(worst.values()) < 1e-3, max(worst, key=worst.get)


@pytest.fixture(scope="module")
def torch_stages():
    """theta_init, then the teacher's and the student's stage in PyTorch."""
    init = torch_reference.vit_mae(SETTINGS)
    teacher, student = (torch_reference.vit_mae(SETTINGS) for _ in range(2))
    for model in (teacher, student):
        model.load_state_dict(init.state_dict())
    teacher_history = torch_reference.further_pretrain(
        teacher, masked_batches(TEACHER_STEPS, splits=1), RATE
    )
    student_history = torch_reference.self_distill(
        student, teacher, masked_batches(STUDENT_STEPS, splits=2), RATE
    )
    return {
        "student": student,
        "init": from_torch(init),
        "further_pretrain": (from_torch(teacher), teacher_history),
        "self_distill_1": (from_torch(student), student_history),
    }


@pytest.fixture(scope="module")
def our_stages(torch_stages):
    """Algorithm 1 as it is, with a `fit` that leaves out the files: name -> params, losses."""
    recipes = {
        steps: training.recipe(
            common.masked_recipe(), steps=steps, batch_size=8, learning_rate=RATE
        )
        for steps in (TEACHER_STEPS, STUDENT_STEPS)
    }
    feed = training.feed(SPLIT, DEVICES)
    found = {}

    def fit(name, loss, params, *, frozen=None, per_example=None, **_):
        recipe = recipes[TEACHER_STEPS if frozen is None else STUDENT_STEPS]
        state, losses = training.train(
            DEVICES,
            params,
            loss,
            recipe,
            feed,
            frozen=frozen,
            per_example=per_example,
            steps_per_call=10,
        )
        found[name] = jax.device_get(state.params), losses
        return found[name][0]

    algorithm.self_distilled_pretraining(torch_stages["init"], backbone=BACKBONE, fit=fit)
    return found


@pytest.mark.parametrize(
    ("stage", "terms"),
    [("further_pretrain", ("masked",)), ("self_distill_1", ("masked", "distill", "loss"))],
)
def test_algorithm_1_is_the_authors(torch_stages, our_stages, stage, terms):
    (ours, losses), (theirs, history) = our_stages[stage], torch_stages[stage]
    assert_same_losses(losses, history, terms)
    assert_same_params(ours, theirs, torch_stages["init"])


def test_the_comparison_is_about_a_training_that_learns(our_stages):
    _, losses = our_stages["self_distill_1"]
    for term, falls_below in (("masked", 0.95), ("distill", 0.5)):
        first, last = losses[term][:6].mean(), losses[term][-6:].mean()
        print(term, first, last)
        assert last < falls_below * first


def test_finetuning_is_the_authors(torch_stages):
    model, head = copy.deepcopy(torch_stages["student"]), torch.nn.Linear(SETTINGS.dim, 3)
    params = jax.device_get(BACKBONE.add_head(from_torch(model), 3, jax.random.key(0)))
    with torch.no_grad():
        head.weight.copy_(torch.tensor(params["head"]["kernel"].T))
        head.bias.copy_(torch.tensor(params["head"]["bias"]))

    batches = []
    for step in range(FINETUNE_STEPS):
        index = examples_of(step)
        labels = torch.tensor(SPLIT.arrays["label"][index], dtype=torch.long)
        batches.append((images_of(index), labels))
    history = torch_reference.finetune(model, head, batches, learning_rate=RATE, warmup=5)

    recipe = training.recipe(
        common.finetune_recipe(),
        **{"steps": FINETUNE_STEPS, "batch_size": 8, "learning_rate": RATE, "warmup_steps": 5},
        augment=False,
    )
    state, losses = training.train(
        DEVICES,
        params,
        algorithm.finetune_loss(BACKBONE),
        recipe,
        training.feed(SPLIT, DEVICES),
        steps_per_call=10,
    )
    assert_same_losses(losses, history, ("cross_entropy",))
    assert losses["loss"][-3:].mean() < 0.9 * losses["loss"][:3].mean()
    assert losses["grad_norm"].max() > 1  # so that clipping is compared too
    trained_head = {"kernel": head.weight.detach().numpy().T, "bias": head.bias.detach().numpy()}
    theirs = {"encoder": from_torch(model)["encoder"], "head": trained_head}
    assert_same_params(jax.device_get(state.params), theirs, params)
