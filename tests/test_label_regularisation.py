"""Label smoothing, TF-reg, KD and Self-KD against their formulas, written down a second time."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdfp import algorithm
from sdfp.methods import kd, label_smoothing, self_kd, tf_reg
from sdfp.methods.interface import Method, Teachers

CLASSES, DIM, HIDDEN, EXAMPLES = 4, 5, 6, 7
KEY = jax.random.key(0)


class Bare(NamedTuple):
    """A backbone of which only `logits` is there."""

    logits: Callable


def mlp_logits(params, batch, key, train, perturb=None):
    """Small enough to be written down again in PyTorch."""
    assert train
    assert perturb is None
    del key
    hidden = jnp.tanh(batch["x"] @ params["encoder"] + params["bias"][None])
    return hidden @ params["head"]


MLP = Bare(mlp_logits)
LOGITS_THEMSELVES = Bare(lambda params, batch, key, train: params)


def kd_settings(alpha=0.4, temperature=2.5, teacher="", weights="", depth=0):
    return kd.Settings(
        alpha=alpha, temperature=temperature, teacher=teacher, weights=weights, depth=depth
    )


CASES = {
    "label_smoothing": (label_smoothing, label_smoothing.Settings(alpha=0.3)),
    "tf_reg": (tf_reg, tf_reg.Settings(alpha=0.6, certainty=0.9)),
    "kd": (kd, kd_settings(0.4, 2.5)),
    "kd_sharp": (kd, kd_settings(0.9, 0.5)),
    "self_kd": (self_kd, self_kd.Settings(alpha=0.7, temperature=3.0)),
}
DISTILLED = {"kd": (0.4, 2.5), "kd_sharp": (0.9, 0.5), "self_kd": (0.7, 3.0)}


def loss_of(name, backbone=MLP):
    method, settings = CASES[name]
    return method.finetune_loss(backbone, settings)


def total(loss):
    """(params, batch) -> [examples], the terms added up as the training step does."""
    return lambda params, batch: sum(loss(params, None, batch, KEY).values())


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_params():
    shapes = {"encoder": (DIM, HIDDEN), "bias": (HIDDEN,), "head": (HIDDEN, CLASSES)}
    return {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def make_batch(seed=0):
    label = np.random.default_rng(seed).integers(CLASSES, size=EXAMPLES).astype(np.int32)
    target = 2 * normal(EXAMPLES, CLASSES, seed=200 + seed)
    return {"x": normal(EXAMPLES, DIM, seed=100 + seed), "label": label, "target": target}


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def softmax(x):
    return np.exp(log_softmax(x))


def regularised(name, q):
    """The target of the methods without a teacher, from one-hot labels (METHODS.md)."""
    if name == "label_smoothing":
        return (1 - 0.3) * q + 0.3 / CLASSES
    return (1 - 0.6) * q + 0.6 * np.where(q == 1, 0.9, (1 - 0.9) / (CLASSES - 1))


@pytest.mark.parametrize("name", CASES)
def test_values_against_numpy(name):
    params, batch = make_params(), make_batch()
    exact = {key: x.astype(np.float64) for key, x in params.items()}
    logits = np.tanh(batch["x"] @ exact["encoder"] + exact["bias"][None]) @ exact["head"]
    q, teacher = np.eye(CLASSES)[batch["label"]], batch["target"].astype(np.float64)
    if name not in DISTILLED:
        expected = {"cross_entropy": -(regularised(name, q) * log_softmax(logits)).sum(-1)}
    else:
        alpha, tau = DISTILLED[name]
        kl = softmax(teacher / tau) * (log_softmax(teacher / tau) - log_softmax(logits / tau))
        expected = {
            "cross_entropy": -(1 - alpha) * (q * log_softmax(logits)).sum(-1),
            "distill": alpha * tau**2 * kl.sum(-1),
        }
    found = jax.jit(loss_of(name))(params, None, batch, KEY)
    chex.assert_type(list(found.values()), jnp.float32)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_logits_by_hand(name):
    """Of cross-entropy to t it is softmax(z) - t; the KL's has tau^2 of the loss, 1/tau of z."""
    batch, z = make_batch(), 2 * normal(EXAMPLES, CLASSES, seed=5)
    loss = total(loss_of(name, LOGITS_THEMSELVES))
    to_logits, to_target = jax.jit(
        jax.grad(lambda z, target: loss(z, {**batch, "target": target}).sum(), argnums=(0, 1))
    )(z, batch["target"])
    q, z, teacher = np.eye(CLASSES)[batch["label"]], z.astype(float), batch["target"].astype(float)
    if name not in DISTILLED:
        expected = softmax(z) - regularised(name, q)
    else:
        alpha, tau = DISTILLED[name]
        pull = softmax(z / tau) - softmax(teacher / tau)
        expected = (1 - alpha) * (softmax(z) - q) + alpha * tau * pull
    np.testing.assert_allclose(to_logits, expected, atol=1e-5)
    np.testing.assert_array_equal(to_target, np.zeros_like(teacher))  # a teacher never learns


def test_alpha_0_is_fine_tuning():
    params, batch = make_params(), make_batch()
    rows = [
        (label_smoothing, label_smoothing.Settings(alpha=0.0)),
        (tf_reg, tf_reg.Settings(alpha=0.0, certainty=0.9)),
        (kd, kd_settings(alpha=0.0)),
        (self_kd, self_kd.Settings(alpha=0.0, temperature=2.0)),
    ]
    losses = [method.finetune_loss(MLP, settings) for method, settings in rows]

    @jax.jit
    def slopes(params):
        objective = lambda p, loss: total(loss)(p, batch).mean()
        plain = algorithm.finetune_loss(MLP)
        return [jax.value_and_grad(objective)(params, loss) for loss in (plain, *losses)]

    expected, *found = slopes(params)
    for each in found:
        chex.assert_trees_all_close(each, expected, atol=1e-6)


def test_label_smoothing_is_an_unsure_made_up_teacher():
    settings = tf_reg.Settings(alpha=0.3, certainty=1 / CLASSES)
    losses = loss_of("label_smoothing"), tf_reg.finetune_loss(MLP, settings)
    params, batch = make_params(), make_batch()
    run = lambda loss: jax.jit(jax.value_and_grad(lambda p: total(loss)(p, batch).mean()))(params)
    chex.assert_trees_all_close(*map(run, losses), atol=1e-6)


@pytest.mark.parametrize("certainty", [0.0, 0.9, 1.0])
def test_the_made_up_teacher_is_a_distribution(certainty):
    teacher = tf_reg.made_up_teacher(jnp.array([2, 0]), CLASSES, certainty)
    rest = (1 - certainty) / 3
    expected = [[rest, rest, certainty, rest], [certainty, rest, rest, rest]]
    np.testing.assert_allclose(teacher, expected, atol=1e-7)


@pytest.mark.parametrize("name", ["label_smoothing", "tf_reg"])
def test_a_single_class_divides_by_nothing(name):
    loss = total(loss_of(name, LOGITS_THEMSELVES))
    batch = {"label": jnp.zeros(2, jnp.int32)}
    value, slope = jax.value_and_grad(lambda z: loss(z, batch).sum())(jnp.ones((2, 1)))
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(slope, np.zeros((2, 1)))


def test_a_student_that_equals_its_teacher_rests():
    params, batch = make_params(), make_batch()
    logits = mlp_logits(params, batch, None, True)
    loss = total(kd.finetune_loss(MLP, kd_settings(alpha=1.0)))
    slope = jax.grad(lambda p, target: loss(p, {**batch, "target": target}).sum())
    chex.assert_trees_all_close(
        slope(params, logits), jax.tree.map(jnp.zeros_like, params), atol=1e-5
    )
    moved = slope(params, logits + jnp.eye(CLASSES)[:1])
    assert np.abs(moved["head"]).max() > 0.01


@pytest.mark.parametrize("name", CASES)
def test_losses_of_bfloat16_logits_are_float32(name):
    rough = Bare(lambda params, batch, key, train: params.astype(jnp.bfloat16))
    z, batch = 2 * normal(EXAMPLES, CLASSES, seed=5), make_batch()
    found = loss_of(name, rough)(z, None, batch, KEY)
    chex.assert_type(list(found.values()), jnp.float32)
    rounded = np.asarray(z.astype(jnp.bfloat16), np.float32)
    exact = loss_of(name, LOGITS_THEMSELVES)(rounded, None, batch, KEY)
    chex.assert_trees_all_close(found, exact, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_equal_settings_are_one_compiled_program(name):
    method, settings = CASES[name]
    assert loss_of(name) is method.finetune_loss(MLP, type(settings)(**vars(settings)))
    other = type(settings)(**{**vars(settings), "alpha": 0.123})
    assert loss_of(name) is not method.finetune_loss(MLP, other)
    assert method.METHOD.settings is type(settings)
    assert method.METHOD.finetune_loss is method.finetune_loss
    same = set(Method._fields) - {"settings", "finetune_loss", "teacher"}
    assert all(getattr(method.METHOD, field) == getattr(Method(), field) for field in same)


def test_who_teaches():
    asked = []
    note = lambda kind: lambda *given: asked.append((kind, *given)) or kind
    teachers = Teachers(same=note("same"), larger=note("larger"), given=note("given"))
    assert self_kd.METHOD.teacher(teachers, self_kd.Settings(alpha=1.0, temperature=1.0)) == "same"
    larger = kd_settings(weights="big", depth=24)
    assert kd.METHOD.teacher(teachers, larger) == "larger"
    there = kd_settings(teacher="/work/teacher", weights="big", depth=24)
    assert kd.METHOD.teacher(teachers, there) == "given"
    assert asked == [("same",), ("larger", "big", 24), ("given", "/work/teacher")]
    for method in (label_smoothing, tf_reg):
        assert method.METHOD.teacher == Method().teacher
    # The loss of a student does not depend on where its teacher came from.
    assert kd.finetune_loss(MLP, larger) is kd.finetune_loss(MLP, there)


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_trains_as_pytorch_does(name):
    """24 AdamW steps of both; in PyTorch with its own losses, in float64."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    batches = [make_batch(seed) for seed in range(24)]

    def their_loss(z, label, teacher):
        q = functional.one_hot(label, CLASSES).double()
        if name == "label_smoothing":
            return functional.cross_entropy(z, label, label_smoothing=0.3)
        if name == "tf_reg":
            made_up = torch.where(q == 1, 0.9, 0.1 / (CLASSES - 1))
            return functional.cross_entropy(z, 0.4 * q + 0.6 * made_up)
        alpha, tau = DISTILLED[name]
        kl = functional.kl_div(
            (z / tau).log_softmax(-1), (teacher / tau).softmax(-1), reduction="batchmean"
        )
        return (1 - alpha) * functional.cross_entropy(z, label) + alpha * tau**2 * kl

    theirs = {
        key: torch.tensor(x, dtype=torch.float64, requires_grad=True)
        for key, x in make_params().items()
    }
    adamw = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.1}
    optimiser = torch.optim.AdamW(theirs.values(), **adamw)
    history, slopes = [], None
    for batch in batches:
        x, teacher = (torch.tensor(batch[key]).double() for key in ("x", "target"))
        hidden = torch.tanh(x @ theirs["encoder"] + theirs["bias"])
        loss = their_loss(hidden @ theirs["head"], torch.tensor(batch["label"]).long(), teacher)
        optimiser.zero_grad()
        loss.backward()
        slopes = slopes or {key: p.grad.numpy().copy() for key, p in theirs.items()}
        optimiser.step()
        history.append(loss.item())

    tx = optax.adamw(0.02, 0.9, 0.99, 1e-3, weight_decay=0.1)
    objective = lambda params, batch: total(loss_of(name))(params, batch).mean()

    def step(state, batch):
        params, opt_state = state
        loss, gradient = jax.value_and_grad(objective)(params, batch)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    params = jax.tree.map(jnp.asarray, make_params())
    chex.assert_trees_all_close(jax.grad(objective)(params, batches[0]), slopes, atol=1e-5)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    (after, _), losses = jax.lax.scan(step, (params, tx.init(params)), stacked)
    np.testing.assert_allclose(losses, history, rtol=1e-5)
    expected = {key: p.detach().numpy() for key, p in theirs.items()}
    chex.assert_trees_all_close(after, expected, atol=1e-5)
    assert all(np.abs(after[key] - params[key]).max() > 0.05 for key in params)
