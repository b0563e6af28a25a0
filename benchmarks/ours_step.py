"""Our side of benchmarks/step_time.py: `python -m benchmarks.ours_step JSON`, one JSON line out.

The loop, the compiled program and the input are those of a run. Only the parameters, the teacher's
table (computed once per stage, so no part of a step) and, of images, the pixels are random.
"""

import collections
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases, flops
from sdfp import algorithm, initial, parallel, report
from sdfp.data import loading, pixels
from sdfp.models.registry import BACKBONES
from sdfp.optim import adamw_of
from sdfp.train import loop, step
from sdfp.types import LossFn, UserError


class Job(NamedTuple):
    """A stage that is ready to be trained, and how its compiled program is called."""

    made: cases.Made
    devices: parallel.Devices
    start: Callable
    """() -> the state before the first step, on the devices. Made anew each time: as in a run, no
    second copy is kept."""
    feed: loading.Feed
    loss_fn: LossFn
    teacher: Callable | None
    """Of self-distillation: what fills the table. Here it never runs."""
    prepare: Callable
    """Of the data, see `loop.make_prepare`."""
    compiled: Callable


def build(made: cases.Made, stage: str) -> Job:
    """What `stages.py` and `train/stage.py` would hand to the loop."""
    settings = made.settings
    devices = parallel.make(**vars(settings.parallel))
    precision = parallel.precision(settings.precision)
    family = BACKBONES[settings.model_name]
    backbone = initial.make_backbone(family, settings.model, precision.dtype)
    params = backbone.init(jax.random.key(0))
    feed = loading.open_feed(made.split, devices, settings.run.resident_gb)
    teacher = None
    if stage == "finetune":
        params = backbone.add_head(params, made.classes, jax.random.key(1))
    elif stage == "self_distill":
        if made.recipe.augment:
            raise UserError("an augmented stage runs its teacher in every step: not measured here")
        teacher = algorithm.teacher_features(backbone, "cls")
        table = np.random.default_rng(0).normal(size=(len(made.split), settings.model.dim))
        target = devices.replicate({"target": table.astype(np.float32)})
        feed = feed._replace(resident={**feed.resident, **target})
    params = jax.device_get(params)  # a training step consumes what is on the devices
    tx = adamw_of(made.recipe)
    prepare = lambda batch, key, augment: batch
    if "image" in made.split.arrays:
        data: Any = settings.data
        prepare = pixels.make_prepare(data.mean, data.std, data.image_size)
    loss_fn = cases.loss_of(stage, backbone)
    compiled = loop.compile_train(
        devices,
        loss_fn,
        loop.make_prepare(prepare, made.recipe.augment, None),
        tx,
        (),
    )
    start = lambda: devices.place(step.init_state(params, tx))
    return Job(made, devices, start, feed, loss_fn, teacher, prepare, compiled)


def calls(job: Job, steps: int, compiled: Callable):
    """The loop of a run, over so many steps."""
    run = job.made.settings.run
    per_call = min(run.steps_per_call, -(-job.made.timed // 3))  # three calls at least
    return loop.train(
        jax.block_until_ready(job.start()),
        None,
        job.feed,
        jax.random.key(0),
        compiled=compiled,
        recipe=replace(job.made.recipe, steps=steps),
        order=job.made.order._replace(devices=job.devices.count),
        devices=job.devices,
        steps_per_call=per_call,
        pause_every=(run.checkpoint_every,),
    )


def measure(case: cases.Case) -> dict:
    """All that benchmarks/step_time.py reads."""
    imported = 0 if jax.devices()[0].memory_stats() else peak_bytes()
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
        collections.deque(calls(job, warm, job.compiled), maxlen=0)  # keeps no state of it
        first, compile_seconds = time.perf_counter() - began, sum(compiling)
        seconds, losses, idle, late, kept = timed(job, case.steps)
        peak = peak_bytes()
        return {
            "side": "ours",
            "seconds": seconds,
            "counts": [count for _, count, _ in kept],
            "losses": losses,
            "first_seconds": first,
            "compile_seconds": compile_seconds,
            "programs": len({shapes for _, _, shapes in kept}),
            "outside": idle,
            "late": late,
            "peak_bytes": peak,
            "import_bytes": imported,
            "flops": operations(job, kept),
            "matmul_peak": matmul_peak(parallel.precision(made.settings.precision)),
            "precision": parallel.precision(made.settings.precision).name,
            "device": jax.devices()[0].device_kind,
            "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
        }


def timed(job: Job, steps: int) -> tuple[list[float], list[float], float, float, list]:
    """Trains, logging as a run does.

    Returns:
        Seconds per step of each call; the losses; the share of the time that no call was under way,
        from a call's metrics on the host to the start of the next; the share of calls that the
        devices had finished before the host had made the next; the arguments of each call.
    """
    kept: list[tuple] = []
    seconds, losses, idle, waited = [], [], [], []
    ended = 0.0

    def noting(state, frozen, resident, batches, key, count):
        nonlocal ended
        now = time.perf_counter()
        if kept:
            idle.append(now - ended)
        else:
            ended = now  # what a stage does once is no part of it
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batches))
        kept.append(((frozen, resident, batches, key, count), count, shapes))
        return job.compiled(state, frozen, resident, batches, key, count)

    def fetch(tree):
        # Of metrics; the loop first fetches the number of the step, before any call.
        if kept:
            waited.append(all(leaf.is_ready() for leaf in jax.tree.leaves(tree)))
        return job.devices.fetch(tree)

    run = job.made.settings.run
    watched = job._replace(devices=job.devices._replace(fetch=fetch))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        board = folder if run.tensorboard else None
        with report.StageLog(folder, "timed", steps, 0, run.log_every, board) as log:
            for done, _, metrics in calls(watched, steps, noting):
                now = time.perf_counter()
                seconds.append((now - ended) / len(metrics["loss"]))
                ended = now
                losses += metrics["loss"].tolist()
                log.add(done, metrics)
    later = [each * call[1] for each, call in zip(seconds, kept, strict=True)][1:]
    return seconds, losses, sum(idle) / sum(later), statistics.mean(waited), kept


def operations(job: Job, kept: list[tuple]) -> float:
    """Of a step, of all calls."""
    state = jax.eval_shape(job.start)
    of_shape = {shapes: arguments for arguments, _, shapes in kept}
    count = {
        shapes: flops.matmul_flops(jax.make_jaxpr(job.compiled)(state, *arguments))
        for shapes, arguments in of_shape.items()
    }
    steps = sum(number for _, number, _ in kept)
    return sum(count[shapes] * number for _, number, shapes in kept) / steps


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
    try:
        print(json.dumps(measure(cases.Case(**json.loads(sys.argv[1])))))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
