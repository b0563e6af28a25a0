"""How much of a batch of texts is padding: tokens computed per real token, packed and padded.

    python benchmarks/packing.py configs/roberta_scierc.py --config.data.dir=/data \\
        --config.data.tokenizer=TOKENIZER

Counts what the training loop would hand to the devices over the whole further pre-training stage;
nothing is trained. "padded" is each batch padded to its longest text.
"""

import sys
import time
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from sdfp import config, experiment
from sdfp.data import loading
from sdfp.data.registry import DATASETS
from sdfp.train.loop import Order

DEVICES = (1, 8)


def measure(split, recipe, seed: int, devices: int) -> dict:
    """Of every step of a stage."""
    order = Order(
        zlib.crc32(f"further_pretrain/{seed}".encode()),
        recipe.batch_size,
        recipe.accumulate,
        devices,
    )
    feed, examples = loading.on_host(split), len(split)
    arrange = feed.layout(order.sample(examples), devices, complete=False)
    length = split.arrays["length"]
    real = packed = padded = 0
    shapes, began = set(), time.perf_counter()
    for step in range(recipe.steps):
        batch = order.batch(step, examples)
        tokens = arrange(batch)["tokens"]
        lengths = length[batch["index"][batch["weight"] > 0]]
        real, packed = real + lengths.sum(), packed + tokens.size
        padded += len(lengths) * lengths.max()
        shapes.add(tokens.shape)
    milliseconds = 1000 * (time.perf_counter() - began) / recipe.steps
    return {
        "packed": packed / real,
        "padded": padded / real,
        "shapes": sorted(shapes),
        "milliseconds": milliseconds,
    }


def main(file: str, *overrides: str) -> None:
    settings = experiment.parse(config.read(file, overrides))
    data = DATASETS[settings.data.name].load(settings.data)
    recipe = settings.stages.further_pretrain
    length = data.unlabelled.arrays["length"]
    print(f"{settings.data.name}: {len(length)} texts, {length.mean():.1f} tokens, {recipe.steps}")
    print(f"steps of {recipe.batch_size}. Tokens computed per real token, mean of all steps:")
    for devices in DEVICES:
        found = measure(data.unlabelled, recipe, settings.seed, devices)
        rows = ", ".join("x".join(map(str, shape[-2:])) for shape in found["shapes"])
        print(
            f"{devices} device(s): packed {found['packed']:.3f}, padded {found['padded']:.2f}; "
            f"compiled shapes {rows}; {np.round(found['milliseconds'], 2)} ms per step on the host"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
