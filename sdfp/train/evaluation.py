"""What a fine-tuned model is worth: metrics, predictions, confusion matrix."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, f1_score

from sdfp import checked, files, hosts, report, sealed
from sdfp.data import loading
from sdfp.data.interface import Dataset, Split
from sdfp.data.loading import Feed
from sdfp.models.interface import Backbone
from sdfp.parallel import Devices
from sdfp.train import kept, loop, mistakes
from sdfp.types import Params

METRICS = frozenset({"accuracy", "micro_f1", "macro_f1"})
MEASURED = METRICS | {"loss", "train_accuracy", "train_loss"}
"""What results.json has of an evaluation."""


@functools.cache
def eval_logits(backbone: Backbone) -> Callable:
    """(params, batch) -> [examples, classes] without dropout."""
    return lambda params, batch: backbone.logits(params, batch, None, train=False)


def log_probabilities(
    params: Params,
    feed: Feed,
    *,
    backbone: Backbone,
    prepare: Callable,
    devices: Devices,
    rows: int,
) -> np.ndarray:
    """[examples, classes] in float64; every example of the split exactly once, not augmented."""
    prepare = loop.make_prepare(prepare, False, None)
    logits = loop.map_examples(
        eval_logits(backbone), params, feed, prepare=prepare, devices=devices, rows=rows
    )
    return log_softmax(logits.astype(np.float64), axis=1)


def measure(log_probability: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Accuracy, micro- and macro-F1 in percent, and mean cross-entropy in nats.

    The mean of macro-F1 is over the classes that occur, as labels or as predictions. Micro-F1 of
    one label per example equals the accuracy.
    """
    predicted = log_probability.argmax(axis=1)
    f1 = lambda average: 100 * float(f1_score(label, predicted, average=average))
    return {
        "accuracy": 100 * float(np.mean(predicted == label)),
        "micro_f1": f1("micro"),
        "macro_f1": f1("macro"),
        "loss": -float(np.mean(log_probability[np.arange(len(label)), label])),
    }


def distance(params: Params, reference: Params) -> float:
    """Euclidean distance of all parameters of two trees, in float64 (Figure 5b of the paper)."""

    def squared(a, b):
        return float(np.sum(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64))))

    return sum(jax.tree.leaves(jax.tree.map(squared, params, reference))) ** 0.5


AGAIN = "it is measured again"
LEFT = PREDICTIONS, CONFUSION = "predictions.csv", "confusion.csv"


def evaluate(
    directory: Path,
    params: Params,
    identity: dict[str, Any],
    train: Feed,
    held_out: Split,
    *,
    class_names: Sequence[str],
    show: Callable | None,
    resident_gb: float,
    **how: Any,
) -> dict[str, float]:
    """Measures a fine-tuned model on its training split and on a held-out one, once.

    Leaves evaluation.json, predictions.csv, confusion.csv and mistakes.json (of the held-out
    split) in `directory`; a later call of the same identity reads the first.

    Args:
        params: on the host.
        identity: what decides the result: digests of the parameters and of the held-out split.
        train: the training split, already on the devices.
        held_out: opened here, and let go at the end.
        show: (split, positions) -> what a person sees of these examples, see `inputs.Kind`; None
            where no example is to be kept.
        how: as `log_probabilities` takes it.

    Returns:
        What `measure` finds on the held-out split, and on the training split without
        augmentation as train_accuracy, train_loss, ...
    """
    path = directory / "evaluation.json"

    def read():
        whole = all((directory / name).is_file() for name in LEFT)
        return _known(path, {"metrics": {str: checked.NUMBER}}) if whole else None

    if known := hosts.decide(read):
        if known["identity"] == identity and known["metrics"].keys() >= MEASURED:
            return known["metrics"]
        report.say(f"{directory}: measured again: other held-out data, class names or metrics")
    devices = how["devices"]
    on_devices = devices.replicate(params)
    on_train = log_probabilities(on_devices, train, **how)
    of_train = measure(on_train, train.split.arrays["label"])
    feed, label = loading.open_feed(held_out, devices, resident_gb), held_out.arrays["label"]
    log_probability = log_probabilities(on_devices, feed, **how)
    metrics = measure(log_probability, label) | {f"train_{k}": v for k, v in of_train.items()}
    probability = np.exp(log_probability)
    directory.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        path.unlink()  # it vouches for the files beside it
    report.save_predictions(directory / PREDICTIONS, held_out.ids, label, probability, class_names)
    matrix = confusion_matrix(label, probability.argmax(axis=1), labels=range(len(class_names)))
    report.save_confusion(directory / CONFUSION, matrix, class_names)
    mistakes.save(directory, held_out, probability, class_names, show)
    files.write_json(path, sealed.seal({"identity": identity, "metrics": metrics}))
    return metrics


def _known(path: Path, shape: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured before; None where nothing was, or its file is damaged, which is told."""
    shape = {"identity": dict, **shape}
    return kept.told_if_damaged(path, AGAIN, shape) if path.exists() else None


MASKS = 0
"""Seed of the masks that are measured or shown, the same in every run."""


def masked_loss(
    directory: Path, params: Params, digest: str, held_out: Split, fingerprint: str, **how: Any
) -> float:
    """L_MAE (Eq. 1) on a held-out split, without dropout and with fixed masks; mean over examples.

    Leaves masked_loss.json in `directory`; a later call for the same parameters reads it.

    Args:
        params: on the host, with their `digest`.
        fingerprint: of the held-out split.
        how: `backbone`, `prepare`, `devices`, `rows` and `resident_gb`.
    """
    path, identity = directory / "masked_loss.json", {"params": digest, "data": fingerprint}
    known = hosts.decide(lambda: _known(path, {"value": checked.NUMBER}))
    if known and known["identity"] == identity:
        return known["value"]
    devices = how["devices"]
    losses = loop.map_examples(
        _eval_masked_loss(how["backbone"]),
        devices.replicate(params),
        loading.open_feed(held_out, devices, how["resident_gb"]),
        prepare=loop.make_prepare(how["prepare"], False, None),
        devices=devices,
        rows=how["rows"],
    )
    value = float(losses.mean(dtype=np.float64))
    files.write_json(path, sealed.seal({"identity": identity, "value": value}))
    return value


@functools.cache
def _eval_masked_loss(backbone: Backbone) -> Callable:
    def loss(params, batch):
        mask = backbone.mask(batch, jax.random.key(MASKS))
        prediction = backbone.reconstruct(params, batch, mask, None, train=False)
        return backbone.reconstruction_loss(prediction, batch, mask)

    return loss


def save_reconstructions(
    directory: Path, data: Dataset, backbone: Backbone, params: Params, count: int
) -> None:
    """Masked input, reconstruction and original of the first `count` examples that a masked stage
    sees, unless they are there: reconstructions.png, of texts .txt."""
    path = directory / ("reconstructions.png" if data.to_pixels else "reconstructions.txt")
    split, count = data.unlabelled, min(count, len(data.unlabelled))
    if not count or path.exists() or not hosts.first():
        return
    feed = loading.on_host(split)
    batch = {"index": np.arange(count, dtype=np.int32), "weight": np.ones(count, np.float32)}
    arranged = feed.layout([batch], 1, complete=True)(batch)
    rows = {**arranged, **feed.rows(arranged["index"])}
    drawn = np.asarray(_picture(backbone, data.prepare)(params, rows))
    if data.to_pixels:
        report.save_pictures(path, data.to_pixels(drawn))
    elif data.to_text:
        with files.whole(path) as temporary:  # as pictures
            temporary.write_text(data.to_text(drawn), encoding="utf-8")
    report.say(f"reconstructions in {path}")


@functools.cache
def _picture(backbone: Backbone, prepare: Callable) -> Callable:
    """One program for all stages."""

    def draw(params, batch):
        key = jax.random.key(MASKS)
        return backbone.picture(params, prepare(batch, key, False), key)

    return jax.jit(draw)
