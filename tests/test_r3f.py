"""R3F against its formula written down a second time, its noise, and where gradients flow.

Most tests draw noise far above the published 1e-5: next to 0 every mistake would pass.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import text_training
import tiny_roberta
import tiny_vit

from sdfp import algorithm
from sdfp.methods import r3f
from sdfp.methods.interface import Method
from sdfp.models import roberta, vit_mae

KEY = jax.random.key(5)
CLASSES = 3
SETTINGS = r3f.Settings(noise="normal", epsilon=1.0, weight=0.7)
CASES = {
    "vit": (vit_mae.make(tiny_vit.settings(), jnp.float32), "normal"),
    "roberta": (roberta.make(tiny_roberta.settings(), jnp.float32), "uniform"),
}
EMBEDDING = {"vit": "patch_embed", "roberta": "word"}


def changed(**changes):
    return r3f.Settings(**{**vars(SETTINGS), **changes})


def make_batch(family):
    batch = tiny_vit.batch(5) | {"label": jnp.array([0, 1, 2, 0, 1])}
    return batch if family == "vit" else tiny_roberta.batch()


def make_params(backbone):
    """Every parameter drawn anew, so that no bias is 0 and no head hides what is before it."""
    fresh = jax.eval_shape(lambda: backbone.add_head(backbone.init(KEY), CLASSES, KEY))
    rng = np.random.default_rng(0)
    draw = lambda path, leaf: 0.3 * rng.normal(size=leaf.shape) + (path[-1].key == "scale")
    return jax.tree.map(jnp.float32, jax.tree.map_with_path(draw, fresh))


class Bare(NamedTuple):
    """A backbone of which only `logits` is there."""

    logits: Callable


def with_noise(backbone, settings, through=(1.0, 1.0)):
    """The loss, of which `through` scales the gradient through the clean and the noised logits.

    Returns:
        (params, batch, key) -> ({term: [examples]}, the noise that was added).
    """
    seen = {}

    def scaled(logits, by):
        return by * logits + (1 - by) * jax.lax.stop_gradient(logits)

    def logits(params, batch, key, train, perturb=None):
        assert train
        if perturb is None:
            return scaled(backbone.logits(params, batch, key, train), through[0])

        def noted(embeddings, example, position):
            seen["noise"] = perturb(jnp.zeros_like(embeddings), example, position)
            return perturb(embeddings, example, position)

        return scaled(backbone.logits(params, batch, key, train, perturb=noted), through[1])

    # Not the cached function: `through` may be traced.
    loss = r3f.finetune_loss.__wrapped__(Bare(logits), settings)
    return lambda params, batch, key: (loss(params, None, batch, key), seen["noise"])


@functools.cache
def compiled(family):
    """(params, weight of cross-entropy, through) -> gradient of the mean, and `with_noise`'s."""
    backbone, kind = CASES[family]
    batch = make_batch(family)

    def objective(params, weight, through):
        terms, noise = with_noise(backbone, changed(noise=kind), through)(params, batch, KEY)
        loss = weight * terms["cross_entropy"] + terms["symmetric_kl"]
        return loss.mean(), (terms, noise)

    return jax.jit(jax.grad(objective, has_aux=True))


def mlp_logits(params, batch, key, train, perturb=None):
    """Words of numbers, embedded, squashed, averaged, classified."""
    del key, train
    embeddings = batch["x"] @ params["embed"]
    if perturb is not None:
        places = jnp.broadcast_arrays(batch["index"][:, None], jnp.arange(4)[None])
        embeddings = perturb(embeddings, *places)
    return jnp.tanh(embeddings).mean(1) @ params["head"] + params["bias"][None]


MLP = Bare(mlp_logits)


def mlp_start():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {"embed": draw(5, 8), "head": draw(8, CLASSES), "bias": draw(CLASSES)}
    label = rng.integers(CLASSES, size=6).astype(np.int32)
    return params, {"x": draw(6, 4, 5), "label": label, "index": np.arange(6, dtype=np.int32)}


def value_and_slope(loss, batch):
    """(params, key) -> the mean of the terms' sum, as the training step has it."""
    mean = lambda params, key: sum(loss(params, None, batch, key).values()).mean()
    return jax.jit(jax.value_and_grad(mean))


def softmax(x):
    x = np.exp(np.asarray(x, np.float64))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("family", CASES)
def test_values_against_numpy(family):
    backbone, batch = CASES[family][0], make_batch(family)
    params = make_params(backbone)
    _, (found, noise) = compiled(family)(params, 1.0, (1.0, 1.0))

    @jax.jit
    def logits(params, noise):
        return backbone.logits(params, batch, None, False, perturb=lambda x, *_: x + noise)

    p, p_noised = softmax(logits(params, jnp.zeros_like(noise))), softmax(logits(params, noise))
    first, second = p * np.log(p / p_noised), p_noised * np.log(p_noised / p)
    expected = {
        "cross_entropy": -np.log(p[np.arange(len(p)), batch["label"]]),
        "symmetric_kl": 0.7 * (first + second).sum(-1),
    }
    chex.assert_type(list(found.values()), jnp.float32)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    assert expected["symmetric_kl"].mean() > 1e-3


@pytest.mark.parametrize("family", CASES)
def test_the_noised_embeddings_get_no_gradient(family):
    params = make_params(CASES[family][0])
    for through, learns in [((1.0, 0.0), True), ((0.0, 1.0), False)]:
        slope, _ = compiled(family)(params, 0.0, through)
        embedding = jax.tree.leaves(slope["encoder"][EMBEDDING[family]])
        assert all(np.any(leaf != 0) == learns for leaf in embedding)
        # What is behind the embeddings learns from both passes.
        assert np.all(np.any(slope["encoder"]["blocks"]["mlp_in"]["kernel"] != 0, axis=(1, 2)))
        assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(slope["head"]))


def their_model(family):
    """transformers' classifier on random weights, and its module that embeds patches or words."""
    import test_parity_roberta
    import test_parity_torch
    import transformers

    if family == "roberta":
        kind, settings = transformers.RobertaForSequenceClassification, tiny_roberta.settings()
        model = test_parity_roberta.make_model(kind, settings, num_labels=CLASSES)
        return model.double(), model.roberta.embeddings.word_embeddings
    kind, settings = transformers.ViTConfig, tiny_vit.settings()
    config = test_parity_torch.make_config(kind, settings, num_labels=CLASSES)
    model = test_parity_torch.randomise(transformers.ViTForImageClassification(config))
    return model.double(), model.vit.embeddings.patch_embeddings


def their_objective(torch, clean, noised, label):
    """METHODS.md's formula with PyTorch's own KL."""
    log_p, log_noised = clean.log_softmax(-1), noised.log_softmax(-1)
    kl = lambda p, q: torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    distance = kl(log_p, log_noised) + kl(log_noised, log_p)
    return torch.nn.functional.cross_entropy(clean, label) + 0.7 * distance


@pytest.mark.torch
@pytest.mark.parametrize("family", CASES)
def test_gradients_against_pytorch(family):
    """Of all parameters, to 1e-5 of each one's norm."""
    torch = pytest.importorskip("torch")
    backbone, batch = CASES[family][0], make_batch(family)
    model, embedding = their_model(family)
    renamed = lambda tensors: backbone.from_torch(
        {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}, head=True
    )[0]
    params = renamed(model.state_dict())
    found, (terms, noise) = compiled(family)(params, 1.0, (1.0, 1.0))
    noise = torch.tensor(np.array(noise)).double()
    tensor = lambda name: torch.tensor(np.asarray(batch[name]))
    if family == "vit":
        given = {"pixel_values": tensor("image").permute(0, 3, 1, 2).double()}
    else:  # one document per row: its segments, 1 and padding's 0, are the mask
        given = {"input_ids": tensor("tokens"), "attention_mask": tensor("segment")}
    clean = model(**given).logits
    hook = embedding.register_forward_hook(lambda module, _, out: out.detach() + noise)
    noised = model(**given).logits
    hook.remove()
    objective = their_objective(torch, clean, noised, tensor("label").long())
    objective.backward()
    expected = renamed({name: parameter.grad for name, parameter in model.named_parameters()})

    loss = sum(float(term.mean()) for term in terms.values())
    np.testing.assert_allclose(loss, objective.item(), rtol=1e-5)
    chex.assert_trees_all_equal_structs(found, expected)
    everything = float(optax.tree.norm(expected))
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        # The gradient of a key's bias is 0 in theory: rounding on both sides.
        error = np.linalg.norm(ours - theirs)
        assert error <= 1e-5 * (np.linalg.norm(theirs) + 0.01 * everything), path


@pytest.mark.torch
def test_trains_as_pytorch_does():
    """24 steps of both, each step with other noise; PyTorch in float64."""
    torch = pytest.importorskip("torch")
    start, batch = mlp_start()
    keys = jax.random.split(KEY, 24)
    draw = lambda key: with_noise(MLP, SETTINGS)(start, batch, key)[1]
    noises = np.array(jax.jit(jax.vmap(draw))(keys))
    assert len(np.unique(noises)) > 0.999 * noises.size

    theirs = {name: torch.tensor(x).double().requires_grad_() for name, x in start.items()}
    optimiser = torch.optim.SGD(theirs.values(), lr=0.3)
    x, label, history = torch.tensor(batch["x"]).double(), torch.tensor(batch["label"]).long(), []
    classify = lambda e: torch.tanh(e).mean(1) @ theirs["head"] + theirs["bias"]
    for noise in noises:
        embeddings = x @ theirs["embed"]
        noised = classify(embeddings.detach() + torch.tensor(noise).double())
        loss = their_objective(torch, classify(embeddings), noised, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())

    params, losses, run = start, [], value_and_slope(r3f.finetune_loss(MLP, SETTINGS), batch)
    for key in keys:
        loss, gradient = run(params, key)
        params = jax.tree.map(lambda p, slope: p - 0.3 * slope, params, gradient)
        losses.append(loss)
    np.testing.assert_allclose(losses, history, rtol=1e-5)
    expected = {name: p.detach().numpy() for name, p in theirs.items()}
    chex.assert_trees_all_close(params, expected, atol=1e-5)
    assert all(np.abs(params[name] - start[name]).max() > 0.05 for name in start)


def test_weight_0_is_fine_tuning():
    params, batch = mlp_start()
    losses = [algorithm.finetune_loss(MLP), r3f.finetune_loss(MLP, changed(weight=0.0))]
    plain, without = (value_and_slope(loss, batch)(params, KEY) for loss in losses)
    chex.assert_trees_all_close(without, plain, atol=1e-6)


def test_documents_packed_in_two_ways_have_one_loss():
    """With dropout: both passes draw by document and place."""
    backbone = text_training.backbone()
    params, run = make_params(backbone), jax.jit(with_noise(backbone, SETTINGS))
    losses, noises = [], []
    for rows in (tiny_roberta.ALONE, (*tiny_roberta.PACKED, (), ())):
        batch = tiny_roberta.batch(rows)
        terms, noise = run(params, batch, KEY)
        losses.append(terms)
        noises.append(tiny_roberta.by_document(batch, noise))
    chex.assert_trees_all_close(*losses, atol=1e-5)
    chex.assert_trees_all_equal(*noises)
    assert len(noises[0]) == sum(tiny_roberta.LENGTHS)
    each = np.stack(list(noises[0].values()))
    assert len(np.unique(each)) > 0.99 * each.size  # no two tokens share theirs


def test_images_have_one_loss_in_any_company():
    backbone = vit_mae.make(tiny_vit.settings(dropout_finetune=0.2), jnp.float32)
    params, run = make_params(backbone), jax.jit(with_noise(backbone, SETTINGS))
    batch, others = make_batch("vit"), jnp.array([3, 0, 3, 4, 3])
    together = run(params, batch, KEY)
    chosen = run(params, jax.tree.map(lambda leaf: leaf[others], batch), KEY)
    expected = jax.tree.map(lambda leaf: leaf[others], together)
    chex.assert_trees_all_close(chosen, expected, atol=1e-5)
    assert len(np.unique(np.round(together[0]["symmetric_kl"], 5))) == 5


def test_each_pass_drops_out_for_itself():
    """Here the logits are what a pass draws: from one key they would be equal."""
    logits = lambda params, batch, key, train, perturb=None: jax.random.normal(key, (2, CLASSES))
    loss = r3f.finetune_loss(Bare(logits), SETTINGS)
    run = lambda key: loss(None, None, {"label": jnp.zeros(2, jnp.int32)}, key)
    assert run(KEY)["symmetric_kl"].min() > 0.01
    assert not np.allclose(run(KEY)["cross_entropy"], run(jax.random.key(6))["cross_entropy"])


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_noise_is_distributed_as_told(noise):
    places = jnp.broadcast_arrays(jnp.arange(40)[:, None], jnp.arange(25)[None])
    drawn = r3f.draw_noise(KEY, *places, 32, kind=noise, epsilon=1e-5)
    chex.assert_shape(drawn, (40, 25, 32))
    chex.assert_type(drawn, jnp.float32)
    drawn = np.asarray(drawn, np.float64) / 1e-5
    std = 1 if noise == "normal" else 1 / np.sqrt(3)
    # 32,000 draws: four standard errors of a mean, and of a standard deviation.
    assert abs(drawn.mean()) < 4 * std / np.sqrt(drawn.size)
    assert abs(drawn.std() / std - 1) < 4 / np.sqrt(2 * drawn.size)
    assert (np.abs(drawn).max() <= 1) == (noise == "uniform")
    assert np.abs(drawn).max() > (0.999 if noise == "uniform" else 3.5)


def test_the_published_noise_is_felt_in_float32():
    """100 times less noise is 1e4 times less distance, and not what rounding makes of it."""
    start = mlp_start()
    run = lambda epsilon: with_noise(MLP, changed(epsilon=epsilon))(*start, KEY)[0]
    distance = lambda epsilon: float(run(epsilon)["symmetric_kl"].sum())
    np.testing.assert_allclose(distance(1e-5) * 1e4, distance(1e-3), rtol=0.1)


def test_the_row():
    loss = r3f.finetune_loss(MLP, SETTINGS)
    assert loss is r3f.finetune_loss(MLP, changed())
    assert loss is not r3f.finetune_loss(MLP, changed(epsilon=0.4))
    parts = {"settings": r3f.Settings, "finetune_loss": r3f.finetune_loss, "float32": True}
    assert Method(**parts) == r3f.METHOD
