"""Trains on 1 device, and on 4 that hold a part of the state each; test_fsdp.py runs this.

python fsdp_worker.py FILE.npz, with 4 devices visible.
"""

import contextlib
import itertools
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

sys.path.insert(0, str(Path(__file__).parents[1]))

import device_worker as worker
import training

from sdfp import checkpoint, parallel, settings
from sdfp.methods import mars, recadam
from sdfp.train import stage, step
from sdfp.types import UserError

LAYOUTS = {"plain": ("jit", 1), "fsdp": ("jit", 4, True)}
NET = {
    "encoder": {
        "kernel": np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8),
        "bias": np.linspace(0.5, -0.5, 8, dtype=np.float32),
    },
    "head": {"kernel": np.linspace(-0.3, 0.2, 32, dtype=np.float32).reshape(8, 4)},
}
OPTIMIZERS = {
    "adamw": training.optim.adamw_of,
    "mars": lambda recipe: mars.make_optimizer(
        recipe, mars.Settings(radius=0.005, head_radius=1.0)
    ),
    "recadam": lambda recipe: recadam.make_optimizer(
        recipe, recadam.Settings(penalty=10.0, schedule="sigmoid", steepness=0.5, midpoint=3)
    ),
}


def net_loss(params, frozen, batch, key):
    """Of a small network: there are enough large ones to compile."""
    colour = jnp.mean(batch["image"], axis=(1, 2))
    hidden = jnp.tanh(colour @ params["encoder"]["kernel"] + params["encoder"]["bias"][None])
    logits = hidden @ params["head"]["kernel"]
    picked = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return {"cross_entropy": picked}


def small_jobs():
    """A small network by three optimisers."""
    tuned = {"params": NET, "loss_fn": net_loss, "recipe": training.finetune(clip_norm=0.1)}
    return {name: {**tuned, "make_optimizer": make} for name, make in OPTIMIZERS.items()}


def trained(layout: str, devices, jobs) -> dict[str, np.ndarray]:
    feed = training.feed(worker.SPLIT, devices)
    found = {}
    for job, arguments in jobs.items():
        state, metrics = training.train(devices, feed=feed, **arguments)
        found[f"{layout}/{job}/params"] = np.asarray(ravel_pytree(state.params)[0])
        found.update({f"{layout}/{job}/{term}": values for term, values in metrics.items()})
    return found


def held(init) -> dict[str, np.ndarray]:
    """Numbers of a state: in all, and on each device."""
    devices = parallel.make(*LAYOUTS["fsdp"])
    recipe = training.finetune(steps=4)
    tx = training.optim.adamw_of(recipe)
    start = lambda params: devices.place(jax.device_get(step.init_state(params, tx)))
    large, state = start(init), start(NET)
    found = {"all": sum(leaf.size for leaf in jax.tree.leaves(large)), "large": _numbers(large)}
    found["before"] = _numbers(state)
    prepare = training.loop.make_prepare(training.PREPARE, False, None)
    compiled = training.loop.compile_train(devices, net_loss, prepare, tx, ())
    calls = training.loop.train(
        state,
        None,
        training.feed(worker.SPLIT, devices),
        training.KEY,
        compiled=compiled,
        recipe=recipe,
        order=training.loop.Order(0, 8, 1, 4),
        devices=devices,
        steps_per_call=2,
        pause_every=(2,),
    )
    for _, after, _ in calls:
        found |= {"behind": _numbers(after), "programs": compiled._cache_size()}
    return {f"held/{name}": np.array(value) for name, value in found.items()}


def _numbers(tree) -> list[int]:
    """How many each device has."""
    shards = [leaf.addressable_shards for leaf in jax.tree.leaves(tree)]
    return [sum(own[device].data.size for own in shards) for device in range(4)]


def resumed(first: str, second: str) -> dict[str, np.ndarray]:
    """A stage that stops on one layout and goes on with the other."""
    config = dict(training.common.run())
    how = {"log_every": 2, "checkpoint_every": 1, "steps_per_call": 2, "tensorboard": False}

    def run(layout: str, folder: str, most: int):
        devices = parallel.make(*LAYOUTS[layout])
        made = stage.Stage(
            "skips",
            worker.sometimes_nan,
            {"encoder": {}, "kernel": np.linspace(0.1, 0.4, 24, dtype=np.float32).reshape(3, 8)},
            origin="",
            recipe=training.masked(steps=9),
            feed=training.feed(worker.SPLIT, devices),
            prepare=training.PREPARE,
            seed=0,
            stream="skips",
            identity={},
            card={"class_names": []},
        )
        changes = {**how, "max_skipped": most}
        return stage.run_stage(
            made, stage.Place(Path(folder), devices, settings.Run(**{**config, **changes}))
        )

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(UserError):
            run(first, folder, 1)
        before = checkpoint.last_step(Path(folder) / "stages/skips")
        outcome = run(second, folder, 9)
    found = {"step": before, "skipped": outcome.record["skipped"], **outcome.params}
    return {
        f"{first}_{second}/{name}": np.array(found[name]) for name in found if name != "encoder"
    }


def main(path: str) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    assert len(jax.devices()) == 4
    init = jax.device_get(worker.BACKBONE.init(jax.random.key(0)))
    teacher = jax.device_get(worker.BACKBONE.init(jax.random.key(1))["encoder"])
    large = worker.jobs(init, teacher)
    jobs = small_jobs() | {name: large[name] for name in ("skips", "self_distill")}
    found = held(init)
    for layout, arguments in LAYOUTS.items():
        found.update(trained(layout, parallel.make(*arguments), jobs))
    for first, second in itertools.product(LAYOUTS, LAYOUTS):
        found.update(resumed(first, second))
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
