"""A fine-tuned model's worst mistakes, with the examples themselves, for a person to look at."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sdfp import files
from sdfp.data.interface import Split

MOST = 12
LIST, PICTURES = "mistakes.json", "mistakes"


def worst(label: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Which examples are wrong, the most certain first.

    Args:
        label: int [examples].
        probability: [examples, classes].

    Returns:
        int [at most MOST]: positions; those of equal probability in the split's order.
    """
    wrong = np.flatnonzero(probability.argmax(axis=1) != label)
    certainty = probability[wrong].max(axis=1)
    return wrong[np.argsort(-certainty, kind="stable")][:MOST]


def save(
    directory: Path,
    held_out: Split,
    probability: np.ndarray,
    class_names: Sequence[str],
    show: Callable | None,
) -> None:
    """mistakes.json: id, label, predicted, probability, and the example: `text`, or `image`, a file
    below mistakes/; neither where no example is to be kept.

    Args:
        probability: [examples, classes].
        show: (split, positions) -> for each a text or a PIL image; None to keep no example.
    """
    label = held_out.arrays["label"]
    found = []
    places: list[int] = worst(label, probability).tolist()
    (directory / LIST).unlink(missing_ok=True)  # it must not name the pictures of other mistakes
    shutil.rmtree(directory / PICTURES, ignore_errors=True)
    examples = show(held_out, places) if show else [None] * len(places)
    for number, (place, shown) in enumerate(zip(places, examples, strict=True)):
        best = int(probability[place].argmax())
        mistake = {
            "id": held_out.ids[place],
            "label": class_names[label[place]],
            "predicted": class_names[best],
            "probability": round(float(probability[place, best]), 6),
        }
        if isinstance(shown, str):
            mistake["text"] = shown
        elif shown is not None:
            mistake["image"] = f"{PICTURES}/{number:02}.png"
            (directory / PICTURES).mkdir(exist_ok=True)
            shown.save(directory / mistake["image"])
        found.append(mistake)
    files.write_json(directory / LIST, found)
