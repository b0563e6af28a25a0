"""Trains and evaluates on 1, 2 and 8 devices; test_devices.py runs this and compares.

python device_worker.py FILE.npz, with 8 devices visible.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_vit
import training

from sdfp import algorithm, parallel
from sdfp.data import loading
from sdfp.data.interface import Split
from sdfp.models import vit_mae
from sdfp.train import loop, probe

LAYOUTS = (("jit", 1), ("jit", 8), ("pmap", 1), ("pmap", 8))
SPLIT = training.waves(21)  # batches of 8, 8 and 5
SETTINGS = tiny_vit.settings(depth=1, dropout_pretrain=0.2, dropout_finetune=0.2)
BACKBONE = vit_mae.make(SETTINGS, jnp.float32)
EXAMPLES, ROWS = (15, 16, 17), 8  # one less than two batches, two batches, one more


def jobs(init, teacher):
    """name -> arguments of `training.train`. Dropout is on: without it less could differ."""
    head = BACKBONE.add_head(init, 3, jax.random.key(2))
    return {
        "self_distill": {  # the masked loss is one of its terms
            "params": init,
            "loss_fn": algorithm.self_distillation_loss(BACKBONE, "cls"),
            "recipe": training.masked(),
            "frozen": teacher,
            "per_example": algorithm.teacher_features(BACKBONE, "cls"),
        },
        "finetune": {  # with flips
            "params": head,
            "loss_fn": algorithm.finetune_loss(BACKBONE),
            "recipe": training.finetune(accumulate=2),
        },
        "masks": {
            "params": {"nothing": np.zeros(1, np.float32)},
            "loss_fn": mask_code,
            "recipe": training.masked(accumulate=2),
        },
        "skips": {
            "params": {"kernel": np.full((3, 2), 0.1, np.float32)},
            "loss_fn": sometimes_nan,
            "recipe": training.masked(),
        },
    }


def mask_code(params, frozen, batch, key):
    """No loss but the masks of the step, as whole numbers that tell places and examples apart."""
    hidden = BACKBONE.mask(batch, key).hidden
    code = (hidden @ (1 + jnp.arange(hidden.shape[1]))) * (1 + batch["index"])
    return {"code": code.astype(jnp.float32) + 0 * params["nothing"][0]}


def sometimes_nan(params, frozen, batch, key):
    """Of one example, and so on one device."""
    colour = jnp.mean(batch["image"], axis=(1, 2))
    loss = jnp.sum(jnp.square(colour @ params["kernel"]), axis=1)
    return {"square": jnp.where(batch["index"] == 7, jnp.nan, loss)}


def trained(backend: str, count: int, jobs) -> dict[str, np.ndarray]:
    devices = parallel.make(backend, count)
    feed = training.feed(SPLIT, devices)
    found = {}
    for job, arguments in jobs.items():
        state, metrics = training.train(devices, feed=feed, **arguments)
        name = f"{backend}{count}/{job}"
        found[f"{name}/params"] = np.asarray(ravel_pytree(state.params)[0])
        found.update({f"{name}/{term}": values for term, values in metrics.items()})
    return found


def row(scale, batch):
    """What tells an example from another, in one array: index, sum of the image, mask."""
    image = jnp.sum(batch["image"], axis=(1, 2, 3))
    hidden = BACKBONE.mask(batch, training.KEY).hidden
    columns = [batch["index"][:, None], scale * image[:, None], hidden]
    return jnp.concatenate([column.astype(jnp.float32) for column in columns], axis=1)


def mapped(backend: str, count: int) -> dict[str, np.ndarray]:
    devices = parallel.make(backend, count)
    found = {}
    for examples in EXAMPLES:
        arrays = {name: array[:examples] for name, array in SPLIT.arrays.items()}
        split = Split(arrays, SPLIT.ids[:examples])
        found[f"{backend}{count}/{examples}"] = loop.map_examples(
            row,
            devices.replicate(np.float32(1)),
            # What is streamed has one program for all sizes; the last one is kept on the devices.
            loading.open_feed(split, devices, resident_gb=float(examples == EXAMPLES[-1])),
            prepare=loop.make_prepare(training.PREPARE, False, None),
            devices=devices,
            rows=ROWS,
        )
    return found


def probed(backend: str, count: int, params) -> dict[str, np.ndarray]:
    """What the probe measures of parameters as a stage has them."""
    devices = parallel.make(backend, count)
    found = probe.measure(
        devices.replicate(params),
        feed=training.feed(SPLIT, devices),
        backbone=BACKBONE,
        prepare=training.PREPARE,
        devices=devices,
        rows=ROWS,
    )
    return {f"{backend}{count}/{name}": np.array(found[name]) for name in probe.NAMES}


def main(path: str) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    assert len(jax.devices()) == 8
    init = jax.device_get(BACKBONE.init(jax.random.key(0)))
    teacher = jax.device_get(BACKBONE.init(jax.random.key(1))["encoder"])
    all_jobs, found = jobs(init, teacher), {}
    for backend, count in LAYOUTS:
        found.update(trained(backend, count, all_jobs))
        found.update(probed(backend, count, init))
    for backend in ("jit", "pmap"):
        for count in (1, 2, 8):
            found.update(mapped(backend, count))
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
