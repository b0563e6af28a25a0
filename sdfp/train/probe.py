"""Is a masked stage helping? Accuracy of its frozen features on labelled training examples.

The test set has no part in it: each example is held out once, in one of `FOLDS` parts, from a k-NN
and a linear classifier that the others teach. The features are those that fine-tuning starts from.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sdfp import algorithm
from sdfp.data import splits
from sdfp.data.interface import Split
from sdfp.data.loading import Feed
from sdfp.models.interface import Backbone
from sdfp.parallel import Devices
from sdfp.train import loop
from sdfp.types import Params

MOST = 2000
"""Examples: with so many an accuracy's standard error is 1 point, and a probe stays cheap."""
FOLDS = 3
NEIGHBOURS = 5
ERRORS = 2
"""Standard errors of a difference that a fall must exceed to be told."""
NAMES = {"probe_knn": "k-NN", "probe_linear": "linear"}

CLASSIFIERS = {
    "probe_knn": KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights="distance"),
    "probe_linear": make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-1, 4, 6))),
}


def sample(train: Split) -> Split | None:
    """The examples that are probed: up to MOST, stratified, of the classes that are in every fold.

    Returns:
        None where that leaves fewer than two classes, or there are no labels.
    """
    if not train.labelled:
        return None
    label = train.arrays["label"]
    order = splits.stratified_order(label, seed=0)[:MOST]
    common = np.flatnonzero(np.bincount(label[order]) >= FOLDS)
    chosen = np.sort(order[np.isin(label[order], common)])
    if len(common) < 2:
        return None
    return train if len(chosen) == len(train) else splits.take(train, chosen)


def scores(features: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Accuracy in percent, every example held out once.

    Args:
        features: [examples, dim]
        label: int [examples], each class at least FOLDS times.
    """
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    predicted = {
        name: cross_val_predict(classifier, features, label, cv=folds)
        for name, classifier in CLASSIFIERS.items()
    }
    right = {name: float(np.mean(guess == label)) for name, guess in predicted.items()}
    return {name: round(100 * share, 4) for name, share in right.items()}


def measure(
    params: Params, *, feed: Feed, backbone: Backbone, prepare: Any, devices: Devices, rows: int
) -> dict[str, float]:
    """`scores` of an encoder's [CLS] features, `probe_examples`, and `probe_seconds` that it took.

    Args:
        params: {"encoder", ...}, on the devices.
        feed: of `sample`.
        prepare: as in training; nothing is augmented here.
        rows: batch size.
    """
    began = time.monotonic()
    features = loop.map_examples(
        algorithm.teacher_features(backbone, "cls"),
        params["encoder"],
        feed,
        prepare=loop.make_prepare(prepare, False, None),
        devices=devices,
        rows=rows,
    )
    found = scores(features.astype(np.float64), feed.split.arrays["label"])
    counted = {"probe_examples": len(feed.split), "probe_seconds": time.monotonic() - began}
    return {**found, **counted}


def warning(lines: Sequence[Mapping[str, float]]) -> str | None:
    """What to tell where the probe fell while the masked loss still improved: the over-fitting of
    the paper's Figure 1.

    A fall counts from the best probe to the last one, if it exceeds ERRORS standard errors of
    the difference of two proportions.

    Args:
        lines: of the stage's metrics.jsonl so far, in order.
    """
    probed = [line for line in lines if "probe_knn" in line]
    for name, told in NAMES.items():
        if len(probed) < 2:
            break
        last, best = probed[-1], max(probed[:-1], key=lambda line: line[name])
        variances = [line[name] * (100 - line[name]) for line in (best, last)]
        error = math.sqrt(sum(variances) / last["probe_examples"])
        before, after = _masked_at(lines, best["step"]), _masked_at(lines, last["step"])
        if best[name] - last[name] > ERRORS * error and after < before:
            return (
                f"the {told} accuracy of frozen features fell from {best[name]:.1f} % (step "
                f"{best['step']:.0f}) to {last[name]:.1f} % (step {last['step']:.0f}) while the "
                f"masked loss fell from {before:.4g} to {after:.4g}: over-fitting. Fewer steps may "
                "do better"
            )
    return None


def _masked_at(lines: Sequence[Mapping[str, float]], step: float) -> float:
    """The masked loss of the last line up to this step, or else of the first line."""
    logged = [line for line in lines if "masked" in line]
    until = [line for line in logged if line["step"] <= step]
    return (until or logged)[-1 if until else 0]["masked"] if logged else math.nan


def summary(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """For the stage's record: the curve [step, k-NN, linear], and the warning, if there is one."""
    probed = [line for line in lines if "probe_knn" in line]
    if not probed:
        return {}
    told = warning(lines)
    return {
        "probe": [[line["step"], line["probe_knn"], line["probe_linear"]] for line in probed],
        "probe_seconds": round(sum(line["probe_seconds"] for line in probed), 3),
    } | ({"warning": told} if told else {})
