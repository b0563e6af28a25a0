"""Our side of benchmarks/input_pipeline.py."""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import cases
from benchmarks.input_pipeline import COMPARED, Task, timed
from sdfp import parallel
from sdfp.data import cache, loading, pixels, plan
from sdfp.data.interface import Split
from sdfp.train import loop, step


def ours(task: Task) -> dict[str, Any]:
    """Decodes into a new cache, opens it as the next start does, runs the input of the steps."""
    devices = parallel.make("jit", 1)
    prepare = pixels.make_prepare(task.mean, task.std, task.image_size)
    files = [Path(file) for file in task.files]
    with tempfile.TemporaryDirectory() as folder:
        decode = lambda: cache.decode_all(files, task.image_size, 3, folder)

        def open_again():
            arrays = {"image": decode().images, "label": np.array(task.labels, np.int32)}
            split = Split(arrays, tuple(task.files))
            feed = loading.open_feed(split, devices, resident_gb=math.inf)
            jax.block_until_ready(feed.resident)
            return feed

        first, decoded = timed(decode)
        if decoded.broken:
            raise SystemExit(f"the loader cannot leave out broken files: {decoded.broken}")
        again, feed = timed(open_again)
        some = prepare({"image": decoded.images[:COMPARED]}, jax.random.key(0), False)["image"]
        streamed = loading.open_feed(feed.split, devices, resident_gb=0)
        rates = {
            "ours_first": [len(files) / first],
            "ours_open": [len(files) / again],
            "ours_resident": _step_inputs(task, feed, devices, prepare),
            "ours_streamed": _step_inputs(task, streamed, devices, prepare),
        }
        colours = np.asarray(some, np.float64).mean(axis=(1, 2)).tolist()
        return {"rates": rates, "colours": colours, "device": jax.devices()[0].device_kind}


def _step_inputs(task: Task, feed, devices, prepare: Callable) -> list[float]:
    """Images per second of each call of the loop of a run, with a step that only makes its batch:
    the state is the last one made, as the loader's answer is."""
    prepared = loop.make_prepare(prepare, task.augment, None)

    def make(state, frozen, resident, batches, key, count, summed):
        del frozen, summed

        def one(i, _):
            batch = jax.tree.map(lambda leaf: leaf[i, 0], batches)
            return prepared(None, resident, batch, key)["image"]

        image = jax.lax.fori_loop(0, count, one, state.params)
        examples = batches["weight"].sum(axis=(1, 2))
        return step.State(state.step + count, image, None), {"examples": examples}

    case = cases.Case(backbone="vit_base", stage="further_pretrain", batch=task.batch, steps=0)
    made = cases.make(case)  # for the settings of a run
    per_call = made.settings.run.steps_per_call
    # One call more, that is not timed: it is compiled.
    steps = per_call + task.epochs * plan.steps_per_epoch(len(feed.split), task.batch)
    image = np.zeros((task.batch, task.image_size, task.image_size, 3), np.float32)
    calls = loop.train(
        devices.replicate(step.State(np.int32(0), image, None)),
        None,
        feed,
        jax.random.key(0),
        compiled=devices.compile_train(make),
        recipe=replace(made.recipe, steps=steps),
        order=made.order._replace(devices=devices.count),
        devices=devices,
        steps_per_call=per_call,
        pause_every=(steps,),
    )
    rates, before = [], time.perf_counter()
    for _, _, metrics in calls:
        now = time.perf_counter()
        rates.append(float(metrics["examples"].sum()) / (now - before))
        before = now
    return rates[1:]
