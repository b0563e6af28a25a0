"""Several short texts per row, so that little of a batch is padding.

The texts of one step, its *documents*, are laid into rows of one length; attention stays within a
document (`segment`). The number of rows is rounded up to one of a few counts, so that few shapes
are compiled. A document is one entry of the step's *document table*, in which the padding
entries of `plan.train_batch` have length 0 and take no room.

With `groups` > 1 the documents are dealt to equal groups (devices, or devices times micro-batches)
of nearly equal numbers of tokens, and each group is packed by itself, into the same number of
rows. Group g has the g-th equal part of the table and of the rows, so a device finds its own
entry and row numbers as `% (entries / groups)` and `% (rows / groups)`.
"""

import bisect
import heapq
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdfp.data import plan

LENGTH_STEP = 32
"""Row lengths are multiples of this (or the maximum): what accelerators like."""
SLACK = 1.02
"""A shorter row, whose attention is cheaper, may have this much more padding."""
SAMPLED = 512
"""Steps from which the row length is chosen."""


class Packing(NamedTuple):
    """Where the documents of one step lie. All arrays are int32 [entries], in table order."""

    order: np.ndarray
    """Entry of the step, as given to `pack`, that stands here in the table: index the step's
    arrays with it (`index[order]`, `weight[order]`). The identity for one group."""
    lengths: np.ndarray
    """Tokens; 0 for padding."""
    row: np.ndarray
    """0 for padding, a valid place to gather from, as in `plan`."""
    start: np.ndarray
    """Column of the first token."""
    segment: np.ndarray
    """The how-maniest document of its row, from 1; 0 for padding."""
    rows: int
    """Of all groups together: one of the counts, times the groups."""
    row_length: int


class Shapes(NamedTuple):
    """What `choose_shapes` found."""

    row_length: int
    row_counts: tuple[int, ...]
    """Rows per group, increasing."""
    ratio: float
    """Mean of rows * row_length / tokens over the epochs that were looked at."""


def pack(
    lengths: np.ndarray, row_length: int, row_counts: Sequence[int], groups: int = 1
) -> Packing:
    """Places every document of a step in a row; a pure function of its arguments.

    Best-fit decreasing: the longest document first, each in the fullest row that takes it.
    Where more rows are needed than the largest count, that count is taken twice, three times and
    so on: no document is ever left out, at the price of one more compiled shape.

    Args:
        lengths: int [entries], tokens; 0 for padding entries. `groups` divides entries.
        row_length: tokens per row.
        row_counts: allowed numbers of rows per group.
        groups: see the module.

    Raises:
        ValueError: a document longer than a row, entries that the groups do not divide, or no
            valid count.
    """
    lengths = np.asarray(lengths)
    if not len(lengths) or groups < 1 or len(lengths) % groups:
        raise ValueError(f"{len(lengths)} entries cannot be dealt to {groups} equal groups")
    if lengths.min() < 0 or lengths.max() > row_length:
        raise ValueError(
            f"documents have {lengths.min()} to {lengths.max()} tokens, a row {row_length}"
        )
    if not row_counts or min(row_counts) < 1:
        raise ValueError(f"need row counts of at least 1, got {row_counts}")
    order = _deal(lengths, groups)
    dealt = lengths[order]
    placed = [_best_fit(part, row_length) for part in np.split(dealt, groups)]
    count = _round_up(max(used for _, used in placed), row_counts)
    places = [place for place, _ in placed]
    for group, place in enumerate(places):
        place[0] += group * count  # rows of the group -> rows of all
    row, start, segment = np.where(dealt > 0, np.concatenate(places, axis=1), 0).astype(np.int32)
    return Packing(
        order.astype(np.int32),
        dealt.astype(np.int32),
        row,
        start,
        segment,
        groups * count,
        row_length,
    )


def fill(
    packing: Packing, index: np.ndarray, tokens: np.ndarray, offsets: np.ndarray, pad: int = 1
) -> dict[str, np.ndarray]:
    """The arrays of a step.

    Args:
        packing: of this step.
        index: int [entries], the step's examples as `plan.train_batch` gives them (not reordered).
        tokens: int [all tokens], the data set's documents one after the other.
        offsets: int [examples + 1]: example i is tokens[offsets[i]:offsets[i + 1]].
        pad: id of the padding token.

    Returns:
        int32 [rows, row_length] each: `tokens`; `segment`, 1, 2, ... per row, 0 for padding;
        `position`, from 0 within the document; `document`, its entry in the table. The last two
        are 0 for padding.

    Raises:
        ValueError: `index` has other lengths than what was packed.
    """
    index, lengths = np.asarray(index)[packing.order], packing.lengths
    first = np.asarray(offsets)[index]
    real = lengths > 0
    if (np.asarray(offsets)[index + 1] - first != lengths)[real].any():
        raise ValueError("these examples are not the ones that were packed")
    entry = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(entry)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = (packing.row.astype(np.int64) * packing.row_length + packing.start)[entry] + position
    values = {
        "tokens": np.asarray(tokens)[first[entry] + position],
        "segment": packing.segment[entry],
        "position": position,
        "document": entry,
    }
    arrays = {}
    for name, value in values.items():
        flat = np.full(packing.rows * packing.row_length, pad if name == "tokens" else 0, np.int32)
        flat[place] = value
        arrays[name] = flat.reshape(packing.rows, packing.row_length)
    return arrays


def concatenate(documents: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Documents of any lengths -> tokens int32 [all tokens], offsets int64 [documents + 1]."""
    offsets = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(document) for document in documents], out=offsets[1:])
    return np.concatenate([np.zeros(0, np.int32), *documents]).astype(np.int32), offsets


def step_lengths(lengths: np.ndarray, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What `pack` takes for one step of `plan.train_batch`: int [entries], 0 for padding."""
    return np.where(weight > 0, np.asarray(lengths)[index], 0)


def choose_shapes(
    lengths: np.ndarray,
    batch_size: int,
    max_length: int,
    seeds: Sequence[int],
    *,
    epochs: int,
    shapes: int = 3,
    groups: int = 1,
) -> Shapes:
    """The row length and the row counts with the least padding, from what training will draw.

    Every step of every seed is packed with the chosen row length, so the largest count is enough
    for each of them. A step of another seed or a later epoch could need more: see `pack`.

    Args:
        lengths: int [examples], tokens of each, 1 to `max_length`.
        batch_size: documents per step.
        max_length: longest row allowed.
        seeds: of the orders of all runs that are to share the compiled shapes.
        epochs: of each run.
        shapes: how many row counts at most, 1 to 3.
        groups: see the module.

    Raises:
        ValueError: nothing to pack, a length out of range, or another number of shapes.
    """
    lengths = np.asarray(lengths)
    if not len(lengths) or not len(seeds) or epochs < 1 or not 1 <= shapes <= 3:
        raise ValueError(f"{len(lengths)} documents, {seeds=}, {epochs=}, {shapes=}: nothing to do")
    if lengths.min() < 1 or lengths.max() > max_length:
        raise ValueError(
            f"documents have {lengths.min()} to {lengths.max()} tokens, not 1 to {max_length}"
        )
    steps = _all_steps(lengths, batch_size, seeds, epochs, groups)
    # Evenly over all seeds and epochs, with the smaller last batches in their proportion.
    sample = [steps[i] for i in np.linspace(0, len(steps) - 1, min(SAMPLED, len(steps)), dtype=int)]
    costs = {
        length: _choose_counts(sample, length, shapes).ratio
        for length in _candidates(int(lengths.max()), max_length)
    }
    best = min(costs.values())
    return _choose_counts(steps, min(n for n, c in costs.items() if c <= best * SLACK), shapes)


def _all_steps(
    lengths: np.ndarray, batch_size: int, seeds: Sequence[int], epochs: int, groups: int
) -> list[list[np.ndarray]]:
    """The lengths in each group of each step."""
    entries = -(-batch_size // groups) * groups
    found = []
    for seed in seeds:
        for step in range(epochs * plan.steps_per_epoch(len(lengths), batch_size)):
            drawn = plan.train_batch(seed, step, len(lengths), batch_size, entries)
            wanted = step_lengths(lengths, *drawn)
            found.append(np.split(wanted[_deal(wanted, groups)], groups))
    return found


def _choose_counts(steps: list[list[np.ndarray]], row_length: int, shapes: int) -> Shapes:
    """The counts with the least rows in all; the largest is what the worst step needs."""
    needed = [max(_best_fit(part, row_length)[1] for part in groups) for groups in steps]
    values, times = np.unique(needed, return_counts=True)
    most = values[-1]
    rows = {}
    for smaller in itertools.combinations(values[:-1].tolist(), min(shapes, len(values)) - 1):
        counts = np.array([*smaller, most])
        rows[tuple(counts.tolist())] = int(times @ counts[np.searchsorted(counts, values)])
    counts = min(rows, key=rows.__getitem__)
    tokens = sum(int(part.sum()) for groups in steps for part in groups)
    return Shapes(row_length, counts, rows[counts] * len(steps[0]) * row_length / tokens)


def _candidates(longest: int, max_length: int) -> list[int]:
    first = -(-longest // LENGTH_STEP) * LENGTH_STEP
    return [*range(first, max_length, LENGTH_STEP), max_length]


def _round_up(needed: int, row_counts: Sequence[int]) -> int:
    enough = [count for count in row_counts if count >= needed]
    largest = max(row_counts)
    return min(enough) if enough else -(-needed // largest) * largest


def _deal(lengths: np.ndarray, groups: int) -> np.ndarray:
    """A permutation of the entries whose equal parts have nearly equal numbers of tokens."""
    if groups == 1:
        return np.arange(len(lengths))
    dealt: list[list[int]] = [[] for _ in range(groups)]
    totals = [(0, group) for group in range(groups)]  # a heap: the emptiest group that has places
    for entry in np.argsort(-lengths, kind="stable").tolist():
        total, group = heapq.heappop(totals)
        dealt[group].append(entry)
        if len(dealt[group]) < len(lengths) // groups:
            heapq.heappush(totals, (total + int(lengths[entry]), group))
    return np.array([entry for members in dealt for entry in sorted(members)])


def _best_fit(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, int]:
    """(row, start, segment) int [3, documents] within one group, and the rows used."""
    place = np.zeros((3, len(lengths)), np.int64)
    free: list[tuple[int, int]] = []  # (room, row), sorted
    held: list[int] = []  # documents, by row
    sizes = lengths.tolist()
    for document in np.argsort(-lengths, kind="stable").tolist():
        size = sizes[document]
        if not size:
            break  # padding entries are the last
        at = bisect.bisect_left(free, (size, -1))
        if at < len(free):
            room, row = free.pop(at)
        else:
            room, row = row_length, len(held)
            held.append(0)
        held[row] += 1
        place[:, document] = row, row_length - room, held[row]
        bisect.insort(free, (room - size, row))
    return place, len(held)
