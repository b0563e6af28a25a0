"""Is a masked stage helping? Accuracy of its frozen features on labelled training examples.

The test set has no part in it: each example is held out once, in one of `FOLDS` parts, from a k-NN
and a linear classifier that the others teach. The features are those that fine-tuning starts from.
What is held out are labels: the masked stage itself sees the images or texts of all of them.
"""

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

from sdfp import algorithm, logged
from sdfp.data import splits
from sdfp.data.interface import Split
from sdfp.data.loading import Feed
from sdfp.models.interface import Backbone
from sdfp.parallel import Devices
from sdfp.train import loop
from sdfp.types import Params

MOST = 1000
"""Examples: with so many an accuracy's standard error is at most 1.6 points, and all probes take
some 3 % of a stage's time at most, as often as the configs ask for them."""
LEAST = 10
"""Examples of a class, where there are so many classes that MOST would leave fewer."""
FOLDS = 3
NEIGHBOURS = 5
RIDGE = 0.03
"""Penalty of the linear classifier per example that teaches it. Fixed: choosing it at every probe
would take longer than all the rest of the probe."""
ERRORS, PROGRESS = 2.5, 0.01
"""What a fall must exceed to be told: standard errors of a difference (`difference_error`), twice
in a row, while the masked loss fell by this share. A stage is looked at many times, so chance gets
many chances."""
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


def scores(features: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """For each classifier its accuracy in percent, every example held out once, and which of them
    were right (`logged.RIGHT`).

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
    found: dict[str, Any] = {}
    for name, classifier in classifiers.items():
        right = cross_val_predict(classifier, features, label, cv=folds) == label
        found[name] = round(100 * float(np.mean(right)), 4)
        found[logged.RIGHT[name]] = np.packbits(right).tobytes().hex()
    return found


def measure(
    params: Params, *, feed: Feed, backbone: Backbone, prepare: Any, devices: Devices, rows: int
) -> dict[str, Any]:
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


def standard_error(line: Mapping[str, Any], name: str) -> float:
    """Of a classifier's accuracy, in points, as of a share of the probe's examples; NaN of older
    lines, which do not say how many they were."""
    return math.sqrt(line[name] * (100 - line[name]) / line.get("probe_examples", math.nan))


def difference_error(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> float:
    """Standard error, in points, of the difference of a classifier's accuracy between two probes.

    All probes of a stage score the same n examples in the same folds, so only those count that
    changed sides: b are right in one alone, c in the other alone. Where both are equally likely,
    (b - c) / n has the standard error sqrt(b + c) / n (McNemar 1947, "Note on the sampling error of
    the difference between correlated proportions or percentages", Psychometrika 12).

    Returns:
        Where a line does not say which examples were right, or they are of another number, the
        error as of two samples of their own, which is larger as a rule; NaN as `standard_error`.
    """
    key = logged.RIGHT[name]
    if not all(
        key in line and line["probe_examples"] == one["probe_examples"] for line in (one, other)
    ):
        return math.hypot(standard_error(one, name), standard_error(other, name))
    differ = int(one[key], 16) ^ int(other[key], 16)
    return 100 * math.sqrt(differ.bit_count()) / one["probe_examples"]


def too_few(steps: int, every: int) -> bool:
    """Whether a stage of so many steps has too few probes that count (`_looks`) for a warning."""
    return 2 * steps < 3 * every


def warning(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """What to tell where the probe fell while the masked loss still improved: the over-fitting of
    the paper's Figure 1.

    A fall counts from the best probe to both of the last two; see ERRORS.

    Args:
        lines: of the stage's metrics.jsonl so far, in order.
    """
    looks = _looks(lines)
    if len(looks) < 3:
        return None
    for name, told in NAMES.items():
        best = max(range(len(looks) - 2), key=lambda place: (looks[place][name], place))
        top, last = looks[best], looks[-2:]
        if not all(
            top[name] - line[name] > ERRORS * difference_error(top, line, name) for line in last
        ):
            continue
        before, now = (_masked(lines, looks, place) for place in (best, len(looks) - 1))
        if now < (1 - PROGRESS) * before:
            return (
                f"the {told} accuracy of frozen features was {top[name]:.1f} % at step "
                f"{top['step']:.0f} and at most {max(line[name] for line in last):.1f} % in the "
                f"last two probes (until step {last[-1]['step']:.0f}), while the masked loss fell "
                f"from {before:.4g} to {now:.4g}: the stage over-fits, or drifts away from what "
                "tells the classes apart. Fewer steps may do better"
            )
    return None


def _looks(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The probes that count: not those of older versions, which do not say of how many examples
    they are, nor that of a stage's end just behind another one (nearer than half of the first
    distance): the two are one look."""
    found = [line for line in lines if {"probe_knn", "probe_examples"} <= line.keys()]
    steps = [line["step"] for line in found]
    near = len(steps) > 2 and 2 * (steps[-1] - steps[-2]) < steps[1] - steps[0]
    return found[:-1] if near else found


def _masked(
    lines: Sequence[Mapping[str, Any]], looks: Sequence[Mapping[str, Any]], place: int
) -> float:
    """The masked loss at a probe's step: the mean since the probe before (at the first until the
    next one), or the next line where there is none. NaN where the stage has no such loss."""
    start, end = (looks[max(place, 1) + back]["step"] for back in (-1, 0))
    trained = [line for line in lines if "masked" in line]
    own = [line["masked"] for line in trained if start < line["step"] <= end]
    later = [line["masked"] for line in trained if line["step"] > end]
    last = [line["masked"] for line in trained[-1:]]
    return float(np.mean(own or later[:1] or last or [math.nan]))


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
