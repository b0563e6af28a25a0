"""Stratified cuts of labelled examples.

All cuts are prefixes of one kind of order, in which every prefix holds the classes in their
proportions. So budgets are nested (the 1,000 are among the 2,500) and the first `classes`
examples hold every class once.
"""

import numpy as np

from sdfp.data.interface import Split

TEST, VALIDATION, BUDGET = 0, 1, 2
"""What a cut is for: each draws its own order from the same seed."""
MEANT = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("unlabelled", "unlabeled"), "unlabelled"),
}
"""Names, in lower case, that people give to the files and folders of a split -> which one."""


def stratified_order(labels: np.ndarray, seed: int, purpose: int = 0) -> np.ndarray:
    """An order of the examples [n] whose every prefix is stratified, drawn at random.

    Args:
      labels: int [n].
      seed: >= 0.
      purpose: TEST, VALIDATION or BUDGET; orders of different purposes are independent.

    Returns:
      int64 [n], a permutation of the positions.
    """
    rng = np.random.default_rng([seed, purpose])
    quantile = np.empty(len(labels))
    first = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        # The k-th of n members stands at (k + 1/2)/n of the order, in every class alike.
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
        first[members[0]] = True
    return np.lexsort((rng.random(len(labels)), quantile, ~first))


def take(split: Split, positions: np.ndarray) -> Split:
    """The examples at `positions` (increasing); a view where they are one run, else a copy."""
    if len(positions) and positions[-1] - positions[0] + 1 == len(positions):
        rows = slice(int(positions[0]), int(positions[-1]) + 1)
    else:
        rows = positions
    arrays = {name: array[rows] for name, array in split.arrays.items()}
    return Split(arrays, tuple(split.ids[i] for i in positions))


def cut(split: Split, keep: int, seed: int, purpose: int) -> tuple[Split, Split]:
    """A labelled split -> (`keep` examples, the rest), both stratified, in their old order.

    Where a class is too small for both parts, its examples are in the first one.
    """
    order = stratified_order(split.arrays["label"], seed, purpose)
    return take(split, np.sort(order[:keep])), take(split, np.sort(order[keep:]))
