"""Our side of benchmarks/step_time.py: `python -m benchmarks.ours_step JSON`, one JSON line out.

The loop, the compiled program and the input are those of a run. Only the parameters, the teacher's
table (computed once per stage, so no part of a step) and, of images, the pixels are random.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases, flops
from sdfp import algorithm, initial, parallel
from sdfp.data import loading, pixels
from sdfp.models.registry import BACKBONES
from sdfp.optim import adamw_of
from sdfp.train import loop, step


class Job(NamedTuple):
    """A stage that is ready to be trained, and how its compiled program is called."""

    made: cases.Made
    devices: parallel.Devices
    state: step.State
    """On the host."""
    feed: loading.Feed
    compiled: Callable


def build(made: cases.Made, stage: str) -> Job:
    """What `stages.py` and `train/stage.py` would hand to the loop."""
    settings = made.settings
    devices = parallel.make(settings.parallel.backend, settings.parallel.devices)
    precision = parallel.precision(settings.precision)
    family = BACKBONES[settings.model_name]
    backbone = initial.make_backbone(family, settings.model, precision.dtype)
    params = backbone.init(jax.random.key(0))
    feed = loading.open_feed(made.split, devices, settings.run.resident_gb)
    if stage == "finetune":
        params = backbone.add_head(params, made.classes, jax.random.key(1))
        loss_fn = algorithm.finetune_loss(backbone)
    elif stage == "self_distill":
        loss_fn = algorithm.self_distillation_loss(backbone, "cls")
        table = np.random.default_rng(0).normal(size=(len(made.split), settings.model.dim))
        target = devices.replicate({"target": table.astype(np.float32)})
        feed = feed._replace(resident={**feed.resident, **target})
    else:
        loss_fn = algorithm.masked_loss(backbone)
    tx = adamw_of(made.recipe)
    prepare = lambda batch, key, augment: batch
    if "image" in made.split.arrays:
        data: Any = settings.data
        prepare = pixels.make_prepare(data.mean, data.std, data.image_size)
    compiled = loop.compile_train(
        devices, loss_fn, loop.make_prepare(prepare, made.recipe.augment, None), tx, ()
    )
    return Job(made, devices, jax.device_get(step.init_state(params, tx)), feed, compiled)


def calls(job: Job, steps: int, compiled: Callable):
    """The loop of a run, over so many steps."""
    run = job.made.settings.run
    return loop.train(
        job.devices.replicate(job.state),
        None,
        job.feed,
        jax.random.key(0),
        compiled=compiled,
        recipe=replace(job.made.recipe, steps=steps),
        order=job.made.order._replace(devices=job.devices.count),
        devices=job.devices,
        steps_per_call=run.steps_per_call,
        pause_every=run.checkpoint_every,
    )


def measure(case: cases.Case) -> dict:
    made = cases.make(case)
    with parallel.precision(made.settings.precision).context():
        job = build(made, case.stage)
        compiling: list[float] = []
        listen = lambda event, seconds, fun_name="", **_: (
            compiling.append(seconds) if "train_steps" in fun_name else None
        )
        jax.monitoring.register_event_duration_secs_listener(listen)
        began = time.perf_counter()
        # Of texts every shape that is timed must have been compiled.
        warm = case.steps if "tokens" in made.split.arrays else 1
        for _ in calls(job, warm, job.compiled):
            pass
        first, compile_seconds = time.perf_counter() - began, sum(compiling)
        seconds, losses, kept = timed(job, case.steps)
        peak = peak_bytes()
        device_seconds, counted = replayed(job, kept)
        return {
            "side": "ours",
            "seconds": seconds,
            "losses": losses,
            "first_seconds": first,
            "compile_seconds": compile_seconds,
            "programs": len({shapes for _, _, shapes in kept}),
            "outside": 1 - device_seconds / sum(seconds),
            "peak_bytes": peak,
            **counted,
            "matmul_peak": matmul_peak(parallel.precision(made.settings.precision)),
            "precision": parallel.precision(made.settings.precision).name,
            "device": jax.devices()[0].device_kind,
            "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
        }


def timed(job: Job, steps: int) -> tuple[list[float], list[float], list]:
    """Seconds and loss of each step, and the arguments of each call."""
    kept: list[tuple] = []

    def noting(state, frozen, resident, batches, key, count):
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batches))
        kept.append(((frozen, resident, batches, key, count), count, shapes))
        return job.compiled(state, frozen, resident, batches, key, count)

    seconds, losses, done = [], [], 0
    began = time.perf_counter()
    for now, _, metrics in calls(job, steps, noting):
        seconds += [(time.perf_counter() - began) / (now - done)] * (now - done)
        losses += metrics["loss"].tolist()
        done, began = now, time.perf_counter()
    return seconds, losses, kept


def replayed(job: Job, kept: list[tuple]) -> tuple[float, dict[str, float]]:
    """Seconds of the same calls with nothing between them, and the operations of a step."""
    state = job.devices.replicate(job.state)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for arguments, _, _ in kept:
        state, metrics = job.compiled(state, *arguments)
        jax.block_until_ready(metrics)
    seconds = time.perf_counter() - began
    of_shape = {shapes: arguments for arguments, _, shapes in kept}
    count = {
        shapes: flops.matmul_flops(jax.make_jaxpr(job.compiled)(state, *arguments))
        for shapes, arguments in of_shape.items()
    }
    steps = sum(number for _, number, _ in kept)
    total = sum(count[shapes] * number for _, number, shapes in kept)
    arguments = next(iter(of_shape.values()))
    analysis = job.compiled.lower(state, *arguments).cost_analysis() or {}
    return seconds, {"flops": total / steps, "xla_flops": analysis.get("flops", 0.0)}


def peak_bytes() -> int:
    """Of the device; on a CPU, which has no memory of its own, of the process."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def matmul_peak(precision: parallel.Precision) -> float:
    """FLOP/s of a large square product in this precision, the best of several."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size), precision.dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    return 2 * size**3 / min(_seconds(product, matrix) for _ in range(8))


def _seconds(product: Callable, matrix: jax.Array) -> float:
    began = time.perf_counter()
    product(matrix, matrix).block_until_ready()
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(measure(cases.Case(**json.loads(sys.argv[1])))))
