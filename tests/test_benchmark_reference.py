"""The two sides of benchmarks/step_time.py do the same work: with the same weights, examples and
mask and without dropout, the losses of three updates agree.

Of texts one thing is made equal by hand: transformers takes one mean over all masked tokens of a
batch, we one per document and then over documents. The mask here hides two words of each document,
and so the two agree.
"""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from benchmarks import cases, flops, ours_step
from sdfp import algorithm
from sdfp.data import loading, pixels
from sdfp.models import roberta, vit_mae
from sdfp.models.registry import BACKBONES
from sdfp.optim import adamw_of
from sdfp.train import step as stepping

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.torch
from benchmarks import torch_stages, torch_step  # noqa: E402

STEPS = 3
HIDDEN = (1, 2)
"""Places of a document whose words are hidden; the second becomes WORD."""
WORD = 100


def make(backbone, stage, **more):
    """A case without dropout, and with updates and decay that are seen at once."""
    rates = ["dropout_pretrain", "dropout_finetune"]
    if backbone == "roberta_tiny":
        rates += [f"attention_{rate}" for rate in rates]
    options = [f"--config.model.{rate}=0.0" for rate in rates]
    recipe = f"--config.stages.{stage}"
    options += [f"{recipe}.learning_rate=0.002", f"{recipe}.weight_decay=0.5"]
    return torch_step.make(
        cases.Case(
            backbone=backbone, stage=stage, batch=6, steps=STEPS, options=tuple(options), **more
        )
    )


def draw(made, backbone, stage, seed):
    """Parameters of which none is 0 or 1 by luck."""
    params = backbone.init(jax.random.key(seed))
    if stage == "finetune":
        params = backbone.add_head(params, made.classes, jax.random.key(seed))
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + 0.05 * random.normal(size=leaf.shape).astype(np.float32), params
    )


def images(made):
    """The first batch and a mask of both sides."""
    model, data = made.settings.model, made.settings.data
    batch = made.batch(0)
    batch |= {name: array[batch["index"]] for name, array in made.split.arrays.items()}
    batch = pixels.make_prepare(data.mean, data.std, data.image_size)(batch, None, False)
    noise = np.random.default_rng(1).random((6, model.patches), np.float32)
    theirs = torch_step.inputs(made, 0)
    theirs["masked"] = {**theirs["plain"], "noise": torch.tensor(noise)}
    return batch, vit_mae.mask_from_noise(jnp.asarray(noise), model.visible), theirs


def texts(made):
    """The same of documents: ours packed, theirs padded."""
    feed, drawn = loading.on_host(made.split), made.batch(0)
    batch = feed.layout([drawn], 1, complete=True)(drawn)
    np.testing.assert_array_equal(batch["index"], drawn["index"])
    batch |= feed.rows(batch["index"])
    example, place = np.repeat(np.arange(6), 2), np.tile(HIDDEN, 6)
    row, column = batch["row"][example], batch["start"][example] + place
    word = np.where(place == HIDDEN[0], made.settings.model.mask_id, WORD)
    tokens = batch["tokens"].copy()
    target, tokens[row, column] = tokens[row, column], word
    given = (tokens, row, column, target, example, np.ones(12, bool), np.int32(0))
    theirs = torch_step.inputs(made, 0)
    ids = theirs["plain"]["input_ids"].clone()
    labels = torch.full_like(ids, -100)
    labels[example, place], ids[example, place] = ids[example, place], torch.tensor(word)
    theirs["masked"] = {**theirs["plain"], "input_ids": ids, "labels": labels}
    return batch, roberta.Mask(*map(jnp.asarray, given)), theirs


def ours(made, backbone, stage, params, teacher, batch):
    loss_fn = cases.loss_of(stage, backbone)
    if stage == "self_distill":
        target = algorithm.teacher_features(backbone, "cls")(teacher["encoder"], batch)
        batch = {**batch, "target": target}
    tx = adamw_of(made.recipe)

    @jax.jit
    def step(state, batch):
        prepare = lambda frozen, resident, batch, key: batch
        more = {"loss_fn": loss_fn, "prepare": prepare, "tx": tx, "weights": {}}
        return stepping.train_step(state, None, {}, batch, jax.random.key(0), **more)

    state, found = stepping.init_state(params, tx), []
    micro_batches = jax.tree.map(lambda leaf: leaf[None], batch)
    for _ in range(STEPS):
        state, metrics = step(state, micro_batches)
        found.append(float(metrics["loss"]))
    return found


def loaded(model, tensors, folder):
    """The same model with these weights, by the hub's names."""
    model.config.save_pretrained(folder)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys"))
    return found.train()


def check(made, stage, batch, mask, their_batch, folder):
    backbone = BACKBONES[made.settings.model_name].make(made.settings.model, jnp.float32)
    backbone = backbone._replace(mask=lambda batch, key: mask)
    params, teacher = (draw(made, backbone, stage, seed) for seed in (0, 1))
    models = torch_step.make_models(made, stage)
    student = loaded(models.student, backbone.to_torch(params), folder / "student")
    if stage == "self_distill":
        tensors = backbone.to_torch(teacher)
        whole = loaded(models.student, tensors, folder / "teacher")
        models.teacher.load_state_dict(whole.base_model.state_dict())
    step = torch_stages.make_step(stage, models._replace(student=student), made.recipe)
    theirs = [float(step(their_batch)) for _ in range(STEPS)]
    assert abs(theirs[2] - theirs[0]) > 0.01 * theirs[0]
    np.testing.assert_allclose(
        ours(made, backbone, stage, params, teacher, batch), theirs, rtol=1e-4
    )


@pytest.mark.parametrize("stage", cases.STAGES)
def test_images(stage, tmp_path):
    made = make("tiny", stage)
    check(made, stage, *images(made), tmp_path)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("stage", cases.STAGES)
def test_texts(stage, tmp_path, real_data):
    made = make("roberta_tiny", stage, data=str(real_data))
    check(made, stage, *texts(made), tmp_path)


@pytest.mark.real_data
def test_masked_words(real_data):
    """15% of the words are predicted, special tokens never; of them 80% read <mask>."""
    made = make("roberta_tiny", "further_pretrain", data=str(real_data))
    model, tokens = made.settings.model, made.split.arrays["tokens"][:600]
    masked, target = torch_step.mask_words(tokens, model, np.random.default_rng(0))
    chosen = target != -100
    ordinary = ~np.isin(tokens, model.special)
    assert not np.any(chosen & ~ordinary)
    np.testing.assert_array_equal(target[chosen], tokens[chosen])
    np.testing.assert_array_equal(masked[~chosen], tokens[~chosen])
    assert chosen.sum() / ordinary.sum() == pytest.approx(0.15, abs=0.02)
    assert np.mean(masked[chosen] == model.mask_id) == pytest.approx(0.8, abs=0.03)
    assert np.mean(masked[chosen] == tokens[chosen]) == pytest.approx(0.1, abs=0.03)


def test_both_sides_count_the_same_products():
    """Where nothing is left out on either side: all tokens of a ViT of one block, of which nothing
    is computed again. What fine-tuning leaves out is counted as less."""
    made = make("tiny", "finetune")
    backbone = BACKBONES["vit_mae"].make(made.settings.model, jnp.float32)
    params, (batch, _, _) = draw(made, backbone, "finetune", 0), images(made)

    def every_token(params):
        hidden = vit_mae.encode(
            made.settings.model, jnp.float32, 0.0, params["encoder"], batch, None
        )
        return jnp.mean(hidden[:, 0] @ params["head"]["kernel"])

    loss_fn = algorithm.finetune_loss(backbone)
    less = lambda params: loss_fn(params, None, batch, None)["cross_entropy"].mean()
    with mock.patch.object(jax, "checkpoint", lambda function, **_: function):
        expected, found = (
            flops.matmul_flops(jax.make_jaxpr(jax.grad(loss))(params))
            for loss in (every_token, less)
        )
    case = cases.Case(backbone="tiny", stage="finetune", batch=6, steps=2)
    assert torch_step.count_flops(made, case) == expected > found


@pytest.mark.parametrize("side", [torch_step, ours_step])
def test_a_measurement(side):
    case = cases.Case(backbone="tiny", stage="self_distill", batch=6, steps=2)
    found = json.loads(json.dumps(side.measure(case)))
    assert len(found["seconds"]) == 2
    if side is ours_step:
        assert found["programs"] == 1
        assert 0 < found["compile_seconds"] < found["first_seconds"]
    assert np.all(np.isfinite(found["losses"]))
    assert found["precision"] == "float32"
    assert min(found[key] for key in ("first_seconds", "peak_bytes", "flops", "matmul_peak")) > 0
