"""Steps that are not finite: skipped bit for bit, counted over a stage's life, and limited."""

import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import text_training
import training

from sdfp import algorithm, checkpoint, logged, optim, parallel
from sdfp.data.interface import Split
from sdfp.methods import mars, recadam
from sdfp.models import roberta
from sdfp.page import stages as pages
from sdfp.settings import Run
from sdfp.train import stage, step
from sdfp.train.skips import Skips, noted
from sdfp.types import UserError

DEVICES = parallel.make("jit", 1)
STEPS, ROWS, BAD = 11, 4, 5
RECIPE = training.finetune(steps=STEPS, batch_size=ROWS, augment=False, frozen=("bias",))
OPTIMIZERS = {
    "adamw": optim.adamw_of(RECIPE),
    "mars": mars.make_optimizer(RECIPE, mars.Settings(radius=0.01, head_radius=0.01)),
    "recadam": recadam.make_optimizer(
        RECIPE, recadam.Settings(penalty=1.0, schedule="sigmoid", steepness=0.5, midpoint=4)
    ),
}
PARAMS = {
    "encoder": {"kernel": np.full((2, 2), 0.3, np.float32), "bias": np.ones(2, np.float32)},
    "head": {"kernel": np.full((2, 1), 0.2, np.float32)},
}


def loss_fn(params, frozen, batch, key, *, wrong, bad=(BAD,)):
    """Of two layers, with noise from the step's key; `wrong` at the examples of `bad`."""
    hit = jnp.isin(batch["index"], jnp.array(bad)) & (batch["weight"] > 0)
    hidden = batch["image"] @ params["encoder"]["kernel"] + params["encoder"]["bias"][None]
    noise = jax.random.normal(key, hidden.shape)
    squares = jnp.square((hidden + noise) @ params["head"]["kernel"])[:, 0]
    if wrong == "loss":
        return {"plain": jnp.where(hit, jnp.nan, squares)}
    root = jnp.sqrt(jnp.where(hit, 0.0, 1.0) * jnp.square(squares))  # at 0 it has no derivative
    return {"plain": root}


def passed(batch, key, augment):
    return batch


def batch_of(index):
    index = np.array([index], np.int32)
    image = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    return {"index": index, "image": image[index], "weight": np.ones(index.shape, np.float32)}


@pytest.mark.parametrize("wrong", ["loss", "grad_norm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_skipped_step_is_as_if_it_had_not_been(optimizer, wrong):
    """The others have the batches and the random numbers of their own steps."""
    tx = OPTIMIZERS[optimizer]
    run = jax.jit(
        partial(
            step.train_step,
            loss_fn=partial(loss_fn, wrong=wrong),
            prepare=lambda frozen, resident, batch, key: batch,
            tx=tx,
            weights={},
        )
    )
    batches = [batch_of(ROWS * i + np.arange(ROWS)) for i in (0, 2, 1, 3, 4, 5)]  # BAD in the third
    state = expected = step.init_state(PARAMS, tx)
    for number, batch in enumerate(batches):
        before = state
        state, metrics = run(before, None, {}, batch, training.KEY)
        assert int(metrics["skipped"]) == (number == 2)
        if number == 2:
            chex.assert_trees_all_equal(state, before._replace(step=before.step + 1))
            assert not np.isfinite(metrics[wrong])
            assert wrong == "loss" or np.isfinite(metrics["loss"])
            expected = expected._replace(step=expected.step + 1)
        else:
            expected, _ = run(expected, None, {}, batch, training.KEY)
        chex.assert_trees_all_equal(state, expected)
    moved = jax.tree.map(lambda new, old: bool(np.any(new != old)), state.params, PARAMS)
    assert moved == {"encoder": {"kernel": True, "bias": False}, "head": {"kernel": True}}


def test_too_few_slots_for_masked_words_skip_the_step(monkeypatch):
    """The loss is NaN then: nothing is dropped silently, and nothing is learnt from it."""
    split = text_training.documents(16)
    arguments = {
        "recipe": training.masked(batch_size=16, frozen=(), steps=2),
        "feed": training.feed(split, DEVICES),
        "prepare": text_training.PREPARE,
    }
    backbone = text_training.backbone(depth=1)
    params = jax.device_get(backbone.init(jax.random.key(0)))
    monkeypatch.setattr(roberta, "slots", lambda settings, tokens: 3)
    state, metrics = training.train(DEVICES, params, algorithm.masked_loss(backbone), **arguments)
    assert metrics["skipped"].tolist() == [1, 1]
    assert np.isnan(metrics["loss"]).all()
    chex.assert_trees_all_equal(state.params, params)


def run_of(**changes) -> Run:
    config = dict(training.common.run())
    told = {"log_every": 4, "checkpoint_every": 2, "steps_per_call": 2, "tensorboard": False}
    return Run(**{**config, **told, **changes})


def stage_of(bad=(), steps=STEPS) -> stage.Stage:
    """Three batches of four examples per epoch: each of `bad` is met once in three steps."""
    image = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    split = Split({"image": image}, tuple(map(str, range(12))))
    return stage.Stage(
        "further_pretrain",
        partial(loss_fn, wrong="loss", bad=bad),
        PARAMS,
        origin="",
        recipe=training.finetune(steps=steps, batch_size=ROWS, augment=False),
        feed=training.feed(split, DEVICES),
        prepare=passed,
        seed=0,
        stream="further_pretrain",
        identity={},
        card={"class_names": []},
        make_optimizer=optim.adamw_of,
    )


def train(workdir, bad=(), steps=STEPS, **changes):
    return stage.run_stage(stage_of(bad, steps), stage.Place(workdir, DEVICES, run_of(**changes)))


def skipped_steps(capsys) -> list[int]:
    told = [line for line in capsys.readouterr().out.splitlines() if "is skipped" in line]
    return [int(line.split(" at step ")[1].split(",")[0]) for line in told]


def test_skipped_steps_are_told_counted_and_shown(tmp_path, capsys):
    outcome = train(tmp_path, bad=(3,), max_skipped=4, log_every=1)
    steps = skipped_steps(capsys)
    assert len(steps) == 3
    assert outcome.record["skipped"] == len(steps)
    lines = logged.read(outcome.directory)
    assert [line["step"] for line in lines if line["skipped"]] == steps
    assert all(("loss" in line) == (not line["skipped"]) for line in lines)
    (shown,) = pages.find(tmp_path, {})
    assert shown.skipped == len(steps)
    assert shown.progress[-1] == f"steps skipped as not finite: {len(steps)}"
    # Of a stage that goes on, the lines say so.
    (outcome.directory / "final" / checkpoint.MANIFEST).unlink()
    (shown,) = pages.find(tmp_path, {})
    assert shown.skipped == len(steps)


def test_more_than_allowed_stop_the_stage_and_a_resumed_one_goes_on_counting(tmp_path, capsys):
    whole = train(tmp_path / "whole", bad=(3,), max_skipped=9)
    steps = skipped_steps(capsys)
    workdir = tmp_path / "stopped"
    with pytest.raises(UserError) as stopped:
        train(workdir, bad=(3,), max_skipped=1)
    assert skipped_steps(capsys) == steps[:1]
    told = str(stopped.value)
    assert told.startswith(f"further_pretrain: loss is not finite at step {steps[1]}. Try a lower")
    assert "not finite: 2 (config.run.max_skipped=1" in told
    assert f"the last finite one was step {steps[1] - 1}, loss " in told
    folder = workdir / "stages" / "further_pretrain"
    assert not (folder / "final").exists()
    kept = checkpoint.last_step(folder)
    assert steps[0] <= kept < steps[1]
    again = train(workdir, bad=(3,), max_skipped=9)
    assert f"goes on after step {kept} of {STEPS}" in capsys.readouterr().out
    assert again.record["skipped"] == whole.record["skipped"] == len(steps)
    chex.assert_trees_all_equal(again.params, whole.params)
    expected, found = map(logged.read, (whole.directory, again.directory))
    rates = {"examples_per_second"}
    cut = lambda lines: [{k: v for k, v in line.items() if k not in rates} for line in lines]
    assert cut(found) == cut(expected)


def test_none_allowed_and_none_finite(tmp_path):
    with pytest.raises(UserError, match=r"step 1\. .*; none before was finite$"):
        train(tmp_path, bad=range(12), max_skipped=0)
    with pytest.raises(UserError, match=r"at step 11\. "):  # the last one
        train(tmp_path, bad=range(12), max_skipped=100)


def test_noted():
    """A call that ends after step 6, with steps 4 to 6."""
    metrics = {
        "loss": np.float32([2, np.inf, 3]),
        "grad_norm": np.float32([1, np.nan, np.nan]),
        "skipped": np.float32([0, 1, 1]),
    }
    take = partial(noted, Skips(1), "x", 6, metrics)
    last = {"step": 4, "loss": 2.0, "grad_norm": 1.0}
    assert take(most=3, steps=9) == Skips(3, last)
    with pytest.raises(
        UserError, match=r"^x: loss is not finite at step 5\. .*: 2 .*=1.* step 4, "
    ):
        take(most=1, steps=9)
    with pytest.raises(UserError, match=r"^x: grad_norm is not finite at step 6\. .*: 3 .*=2"):
        take(most=2, steps=9)
    with pytest.raises(UserError, match=r"at step 6\. "):
        take(most=3, steps=6)
    assert Skips(**json.loads(json.dumps(Skips(3, last)._asdict()))) == Skips(3, last)


def test_a_gradient_whose_norm_overflows_is_not_finite():
    """So the second moment, a mean of squares, stays finite as well."""
    assert not np.isfinite(optax.tree.norm({"a": np.float32([1e20])}))
