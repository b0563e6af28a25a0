"""The loops over batches: what the host does while the devices compute."""

import numpy as np
import training

from sdfp import parallel
from sdfp.data import loading
from sdfp.train import loop


def test_the_next_batch_is_made_while_the_devices_compute():
    """Three batches of streamed rows: each is on its way before the values of the one before it
    are waited for."""
    made, told = parallel.make("jit", 1), []

    def noted(name, fn):
        return lambda *given: (told.append(name), fn(*given))[1]

    devices = made._replace(
        shard=noted("send", made.shard),
        gather=noted("wait", made.gather),
        compile_map=lambda fn: noted("compute", made.compile_map(fn)),
    )
    split = training.waves(21)
    values = loop.map_examples(
        lambda params, batch: batch["image"].sum(axis=(1, 2, 3)),
        None,
        loading.open_feed(split, devices, resident_gb=0.0),
        prepare=lambda params, resident, batch, key: batch,
        devices=devices,
        rows=8,
    )
    steps = ["send", "compute", "send", "wait", "compute", "send", "wait", "compute", "wait"]
    assert told == steps
    assert (values == split.arrays["image"].sum(axis=(1, 2, 3))).all()
    assert len(np.unique(values)) > 1
