"""What device_worker.py does, with packed documents; test_text_devices.py runs this and compares.

python device_worker_text.py FILE.npz, with 8 devices visible.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

sys.path.insert(0, str(Path(__file__).parents[1]))

import text_training
import training

from sdfp import algorithm, parallel
from sdfp.data.interface import Split
from sdfp.train import evaluation, loop

LAYOUTS = (("jit", 1), ("jit", 8), ("pmap", 8))
SPLIT = text_training.documents(27)  # batches of 16 and 11
BACKBONE = text_training.backbone(depth=1)
EXAMPLES, ROWS = (15, 17), 8  # one less than two batches, one more


def jobs(init, teacher):
    """name -> arguments of `training.train`."""
    head = BACKBONE.add_head(init, 3, jax.random.key(2))
    return {
        "self_distill": {  # the masked loss is one of its terms
            "params": init,
            "loss_fn": algorithm.self_distillation_loss(BACKBONE, "all"),
            "recipe": training.masked(batch_size=16, frozen=()),
            "frozen": teacher,
            "per_example": algorithm.teacher_features(BACKBONE, "all"),
        },
        "finetune": {
            "params": head,
            "loss_fn": algorithm.finetune_loss(BACKBONE),
            "recipe": training.finetune(batch_size=16, accumulate=2, augment=False),
        },
    }


def run(backend: str, count: int, all_jobs, head) -> dict[str, np.ndarray]:
    devices = parallel.make(backend, count)
    feed = training.feed(SPLIT, devices)
    found = {}
    for job, arguments in all_jobs.items():
        state, metrics = training.train(
            devices, feed=feed, prepare=text_training.PREPARE, **arguments
        )
        name = f"{backend}{count}/{job}"
        found[f"{name}/params"] = np.asarray(ravel_pytree(state.params)[0])
        found.update({f"{name}/{term}": values for term, values in metrics.items()})
    for examples in EXAMPLES:
        arrays = {name: array[:examples] for name, array in SPLIT.arrays.items()}
        found[f"{backend}{count}/{examples}"] = loop.map_examples(
            evaluation.eval_logits(BACKBONE),
            devices.replicate(head),
            training.feed(Split(arrays, SPLIT.ids[:examples]), devices),
            prepare=loop.make_prepare(text_training.PREPARE, False, None),
            devices=devices,
            rows=ROWS,
        )
    return found


def main(path: str) -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_default_matmul_precision", "highest")
    assert len(jax.devices()) == 8
    init = jax.device_get(BACKBONE.init(jax.random.key(0)))
    teacher = jax.device_get(BACKBONE.init(jax.random.key(1))["encoder"])
    all_jobs, found = jobs(init, teacher), {}
    for backend, count in LAYOUTS:
        found.update(run(backend, count, all_jobs, all_jobs["finetune"]["params"]))
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
