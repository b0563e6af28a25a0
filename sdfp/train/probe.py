"""Is a masked stage helping? Accuracy of its frozen features on labelled training examples.

The test set has no part in it: each example is held out once, in one of `FOLDS` parts, from a k-NN
and a linear classifier that the others teach. The features are those that fine-tuning starts from.
What is held out are labels: the masked stage itself sees the images or texts of all of them.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeClassifier
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
LEAST = 10
"""Examples of a class, where there are so many classes that MOST would leave fewer."""
FOLDS = 3
NEIGHBOURS = 5
RIDGE = 0.03
"""Penalty of the linear classifier per example that teaches it. Fixed: choosing it at every probe
would take longer than all the rest of the probe."""
ERRORS, PROGRESS = 2.5, 0.01
"""What a fall must exceed to be told: standard errors of a difference, twice in a row, while the
masked loss fell by this share. A stage is looked at many times, so chance gets many chances."""
NAMES = {"probe_knn": "k-NN", "probe_linear": "linear"}


def sample(train: Split) -> Split | None:
    """The examples that are probed: up to MOST, of each class the same number where it has them.

    Classes that do not fill the folds are left out; of very many classes some, at random.

    Returns:
        None where there are no labels, or too few examples.
    """
    if not train.labelled:
        return None
    label, rng = train.arrays["label"], np.random.default_rng(0)
    classes = [rng.permutation(np.flatnonzero(label == each)) for each in range(label.max() + 1)]
    filled = [members for members in classes if len(members) >= FOLDS]
    taken = [filled[i] for i in rng.permutation(len(filled))[: MOST // LEAST]]
    if len(taken) < 2:
        return None
    chosen = np.sort(np.concatenate([members[: MOST // len(taken)] for members in taken]))
    if len(chosen) < 2 * NEIGHBOURS:
        return None
    return train if len(chosen) == len(train) else splits.take(train, chosen)


def scores(features: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Accuracy in percent, every example held out once.

    Args:
        features: [examples, dim]
        label: int [examples], each class at least FOLDS times.
    """
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    taught = len(label) * (FOLDS - 1) / FOLDS
    classifiers = {
        "probe_knn": KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights="distance"),
        "probe_linear": make_pipeline(StandardScaler(), RidgeClassifier(RIDGE * taught)),
    }
    predicted = {
        name: cross_val_predict(classifier, features, label, cv=folds)
        for name, classifier in classifiers.items()
    }
    right = {name: float(np.mean(guess == label)) for name, guess in predicted.items()}
    return {name: round(100 * share, 4) for name, share in right.items()}


def measure(
    params: Params, *, feed: Feed, backbone: Backbone, prepare: Any, devices: Devices, rows: int
) -> dict[str, float]:
    """`scores` of an encoder's [CLS] features, `probe_examples`, and `probe_seconds` that it took.

    Features that are not finite have no scores: that is the stage's trouble, and it will tell.

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
    features = features.astype(np.float64)
    finite = bool(np.isfinite(features).all())
    found = scores(features, feed.split.arrays["label"]) if finite else {}
    counted = {"probe_examples": len(feed.split), "probe_seconds": time.monotonic() - began}
    return {**found, **counted}


def warning(lines: Sequence[Mapping[str, float]]) -> str | None:
    """What to tell where the probe fell while the masked loss still improved: the over-fitting of
    the paper's Figure 1.

    A fall counts from the best probe to the better one of the last two; see ERRORS.

    Args:
        lines: of the stage's metrics.jsonl so far, in order; older ones do not say of how many
            examples a probe was, and none is counted.
    """
    probed = [line for line in lines if {"probe_knn", "probe_examples"} <= line.keys()]
    if len(probed) < 3:
        return None
    losses = _masked(lines, [line["step"] for line in probed])
    for name, told in NAMES.items():
        best = max(range(len(probed) - 2), key=lambda place: (probed[place][name], place))
        top, end = probed[best], max(probed[-2:], key=lambda line: line[name])
        variances = [
            line[name] * (100 - line[name]) / line["probe_examples"] for line in (top, end)
        ]
        fell = top[name] - end[name] > ERRORS * math.sqrt(sum(variances))
        if fell and losses[-1] < (1 - PROGRESS) * losses[best]:
            return (
                f"the {told} accuracy of frozen features was {top[name]:.1f} % at step "
                f"{top['step']:.0f} and at most {end[name]:.1f} % in the last two probes (until "
                f"step {probed[-1]['step']:.0f}), while the masked loss fell from "
                f"{losses[best]:.4g} to {losses[-1]:.4g}: the stage over-fits, or drifts away from "
                "what tells the classes apart. Fewer steps may do better"
            )
    return None


def _masked(lines: Sequence[Mapping[str, float]], steps: Sequence[float]) -> list[float]:
    """The masked loss at each probe's step: the mean since the probe before (at the first until the
    next one), or the next line where there is none. NaN where the stage has no such loss."""
    logged = [line for line in lines if "masked" in line]
    spans = [(steps[0], steps[1]), *itertools.pairwise(steps)]
    found = []
    for start, end in spans:
        own = [line["masked"] for line in logged if start < line["step"] <= end]
        later = [line["masked"] for line in logged if line["step"] > end]
        last = [line["masked"] for line in logged[-1:]]
        found.append(float(np.mean(own or later[:1] or last or [math.nan])))
    return found


def summary(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """For the stage's record: the curve [step, k-NN, linear], the time that it took (which is not
    in the stage's), and the warning, if there is one."""
    probed = [line for line in lines if "probe_knn" in line]
    if not probed:
        return {}
    told = warning(lines)
    return {
        "probe": [[line["step"], line["probe_knn"], line["probe_linear"]] for line in probed],
        "probe_seconds": round(sum(line["probe_seconds"] for line in probed), 3),
    } | ({"warning": told} if told else {})
