"""Random documents for a tiny RoBERTa, as a split that the real loops take."""

import jax.numpy as jnp
import numpy as np
import tiny_roberta

from sdfp.data import texts
from sdfp.data.interface import Split
from sdfp.models import roberta

PREPARE = texts.prepare


def backbone(**changes) -> roberta.interface.Backbone:
    """Dropout is on: without it less could differ."""
    rates = [f"{part}_{stage}" for part in ("dropout", "attention_dropout") for stage in STAGES]
    return roberta.make(tiny_roberta.settings(**dict.fromkeys(rates, 0.2), **changes), jnp.float32)


STAGES = ("pretrain", "finetune")


def documents(examples: int, longest: int = 18, classes: int = 3) -> Split:
    """Of unequal lengths. A class prefers some words: something that a model can learn."""
    rng = np.random.default_rng(1)
    length = rng.integers(3, longest + 1, examples)
    label = rng.integers(classes, size=examples)
    tokens = np.ones((examples, longest), np.int32)
    for row, size, kind in zip(tokens, length, label, strict=True):
        words = rng.integers(4, 39, size - 2)
        row[:size] = [0, *np.where(rng.random(size - 2) < 0.5, 5 + kind, words), 2]
    arrays = {"tokens": tokens, "length": length, "label": label}
    arrays = {name: array.astype(np.int32) for name, array in arrays.items()}
    return Split(arrays, tuple(f"train/{i}" for i in range(examples)))
