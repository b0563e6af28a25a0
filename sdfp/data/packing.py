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
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

LENGTH_STEP = 32
"""Row lengths are multiples of this (or the maximum): what accelerators like."""
SLACK = 1.02
"""A shorter row, whose attention is cheaper, may have this much more padding."""
LONGEST_ROW = 512
"""Rows are no longer than this, but where a text is."""


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
    Where more rows are needed than the largest count, it is passed by an eighth or more: no
    document is ever left out, at the price of one more compiled shape.

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
    packing: Packing, index: np.ndarray, tokens: np.ndarray, pad: int = 1
) -> dict[str, np.ndarray]:
    """The arrays of a step.

    Args:
        packing: of this step.
        index: int [entries], the step's examples as `plan.train_batch` gives them (not reordered).
        tokens: int [examples, longest], the data set's documents.
        pad: id of the padding token.

    Returns:
        int32 [rows, row_length] each: `tokens`; `segment`, 1, 2, ... per row, 0 for padding;
        `position`, from 0 within the document; `document`, its entry in the table. The last two
        are 0 for padding.
    """
    index, lengths = np.asarray(index)[packing.order], packing.lengths
    entry = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(entry)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = (packing.row.astype(np.int64) * packing.row_length + packing.start)[entry] + position
    values = {
        "tokens": tokens[index[entry], position],
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


def step_lengths(lengths: np.ndarray, index: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What `pack` takes for one step of `plan.train_batch`: int [entries], 0 for padding."""
    return np.where(weight > 0, np.asarray(lengths)[index], 0)


def layout(
    tokens: np.ndarray,
    lengths: np.ndarray,
    batches: Iterable[Mapping[str, np.ndarray]],
    devices: int,
    complete: bool,
) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """How the texts of a batch are packed: shapes are chosen for batches like the given ones.

    Args:
        tokens: int32 [examples, longest], the data set.
        lengths: int32 [examples].
        batches: `index` and `weight`, [micro-batches, entries] or [entries].
        devices: that share a micro-batch.
        complete: whether no other batches will come; they then get one row count.

    Returns:
        Batch -> batch: `index` and `weight` in the document table's order, its `row` and `start`,
        and what `fill` gives, with the same leading axes. `row` and `document` count within the
        part of one device.
    """

    def wanted(batch) -> tuple[int, np.ndarray]:
        groups = devices * int(np.prod(batch["index"].shape[:-1], dtype=int))
        return groups, step_lengths(lengths, batch["index"].ravel(), batch["weight"].ravel())

    groups, steps = zip(*map(wanted, batches), strict=True)
    chosen = choose_shapes(
        steps, shapes=1 if complete else 3, groups=groups[0], margin=not complete
    )

    def arrange(batch):
        groups, step = wanted(batch)
        packed = pack(step, chosen.row_length, chosen.row_counts, groups)
        arrays = fill(packed, batch["index"].ravel(), tokens)
        arrays["document"] %= len(step) // groups
        table = {name: batch[name].ravel()[packed.order] for name in ("index", "weight")}
        table |= {"row": packed.row % (packed.rows // groups), "start": packed.start}
        lead = batch["index"].shape[:-1]
        flat = {**table, **arrays}
        return {name: value.reshape(*lead, -1, *value.shape[1:]) for name, value in flat.items()}

    return arrange


def choose_shapes(
    steps: Sequence[np.ndarray], *, shapes: int = 3, groups: int = 1, margin: bool = True
) -> Shapes:
    """The row length and the row counts with the least padding for steps like these.

    Args:
        steps: lengths [entries] of each, as `pack` takes them.
        shapes: how many row counts at most, 1 to 3.
        groups: see the module.
        margin: whether steps will come that need more rows than any of these.

    Raises:
        ValueError: nothing to pack, or another number of shapes.
    """
    longest = max((int(lengths.max()) for lengths in steps), default=0)
    if not longest or not 1 <= shapes <= 3:
        raise ValueError(f"{len(steps)} steps, longest text {longest}, {shapes=}: nothing to do")
    dealt = [np.split(lengths[_deal(lengths, groups)], groups) for lengths in steps]
    found = {
        length: _choose_counts(dealt, length, shapes, margin) for length in _candidates(longest)
    }
    best = min(chosen.ratio for chosen in found.values())
    return next(chosen for chosen in found.values() if chosen.ratio <= best * SLACK)


def _choose_counts(
    steps: list[list[np.ndarray]], row_length: int, shapes: int, margin: bool
) -> Shapes:
    """The counts with the least rows in all; the largest is enough for every step."""
    needed = [max(_best_fit(part, row_length)[1] for part in groups) for groups in steps]
    values, times = np.unique(needed, return_counts=True)
    # Sums of many lengths are nearly normal. The largest of some hundreds lies about 2.8 standard
    # deviations above the middle; half as much again is passed once in 70,000 steps.
    most = int(values[-1]) + margin * math.ceil((values[-1] - np.median(needed)) / 2)
    rows = {}
    for smaller in itertools.combinations(values.tolist(), min(shapes - 1, len(values))):
        counts = np.array(sorted({*smaller, most}))
        rows[tuple(counts.tolist())] = int(times @ counts[np.searchsorted(counts, values)])
    counts = min(rows, key=rows.__getitem__)
    tokens = sum(int(part.sum()) for groups in steps for part in groups)
    return Shapes(row_length, counts, rows[counts] * len(steps[0]) * row_length / tokens)


def _candidates(longest: int) -> range:
    first = -(-longest // LENGTH_STEP) * LENGTH_STEP
    return range(first, max(first, LONGEST_ROW) + 1, LENGTH_STEP)


def _round_up(needed: int, row_counts: Sequence[int]) -> int:
    enough = [count for count in row_counts if count >= needed]
    if enough:
        return min(enough)
    # In large steps: each count is another compiled shape.
    step = -(-max(row_counts) // 8)
    return -(-needed // step) * step


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
