"""What a fine-tuned model is worth: metrics, predictions, confusion matrix."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.metrics import confusion_matrix, log_loss

from sdfp import checkpoint, report
from sdfp.data.loading import Feed
from sdfp.models.interface import Backbone
from sdfp.parallel import Devices
from sdfp.train import loop
from sdfp.types import Params


@functools.cache
def eval_logits(backbone: Backbone) -> Callable:
    """(params, batch) -> [examples, classes] without dropout."""
    return lambda params, batch: backbone.logits(params, batch, None, train=False)


def probabilities(
    params: Params,
    feed: Feed,
    *,
    backbone: Backbone,
    prepare: Callable,
    devices: Devices,
    rows: int,
) -> np.ndarray:
    """[examples, classes] in float64, every example of the split exactly once, not augmented."""
    prepare = loop.make_prepare(prepare, False, None)
    logits = loop.map_examples(
        eval_logits(backbone), params, feed, prepare=prepare, devices=devices, rows=rows
    ).astype(np.float64)
    exponent = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponent / exponent.sum(axis=1, keepdims=True)


def measure(probability: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Accuracy in percent, and mean cross-entropy in nats."""
    classes = np.arange(probability.shape[1])
    return {
        "accuracy": 100 * float(np.mean(probability.argmax(axis=1) == label)),
        "loss": float(log_loss(label, probability, labels=classes)),
    }


def distance(params: Params, reference: Params) -> float:
    """Euclidean distance of all parameters of two trees, in float64 (Figure 5b of the paper)."""

    def squared(a, b):
        return float(np.sum(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64))))

    return sum(jax.tree.leaves(jax.tree.map(squared, params, reference))) ** 0.5


def evaluate(
    directory: Path,
    params: Params,
    digest: str,
    feeds: dict[str, Feed],
    *,
    held_out: str,
    class_names: Sequence[str],
    **how: Any,
) -> dict[str, float]:
    """Measures a fine-tuned model on "train" and on the held-out split, once.

    Leaves evaluation.json, predictions.csv and confusion.csv (of the held-out split) in
    `directory`; a later call reads the first if it is of the same parameters and split.

    Args:
        params: on the host.
        digest: of `params`.
        feeds: "train" and `held_out`.
        held_out: "test" or "validation".
        how: as `probabilities` takes it.

    Returns:
        accuracy, loss on the held-out split; train_accuracy, train_loss without augmentation.
    """
    path = directory / "evaluation.json"
    identity = {"digest": digest, "held_out": held_out}
    if path.exists():
        known = json.loads(path.read_text())
        if known.items() >= identity.items():
            return known["metrics"]
    on_devices = how["devices"].replicate(params)
    metrics = {}
    for split, prefix in (("train", "train_"), (held_out, "")):
        feed = feeds[split]
        label = feed.split.arrays["label"]
        probability = probabilities(on_devices, feed, **how)
        metrics |= {prefix + k: v for k, v in measure(probability, label).items()}
    report.save_predictions(
        directory / "predictions.csv", feed.split.ids, label, probability, class_names
    )
    matrix = confusion_matrix(label, probability.argmax(axis=1), labels=range(len(class_names)))
    report.save_confusion(directory / "confusion.csv", matrix, class_names)
    checkpoint.write_json(path, {**identity, "metrics": metrics})
    return metrics
