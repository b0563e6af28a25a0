"""Which examples are in which batch, as pure functions of (seed, step).

There is no iterator and so no iterator state to save: a run that resumes at step s asks for
step s. Seeds are non-negative integers. NumPy's generator streams are stable in practice but
promised only within one NumPy version, so a run is bit-reproducible for one version.
"""

import functools
from collections.abc import Iterator

import numpy as np


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches that cover `examples` once; the last, smaller one counts (as in the paper's runs)."""
    if examples < 1 or batch_size < 1:
        raise ValueError(f"need examples and batch_size >= 1, got {examples} and {batch_size}")
    return -(-examples // batch_size)


def examples_seen(steps: int, examples: int, batch_size: int) -> int:
    """Examples in the first `steps` batches, counted as often as they are drawn."""
    epochs, rest = divmod(steps, steps_per_epoch(examples, batch_size))
    return epochs * examples + min(rest * batch_size, examples)


# Two epochs are enough for a step and its prefetch; more leave room for other stages.
@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(examples).astype(np.int32)
    order.setflags(write=False)  # shared by all callers
    return order


def _padded(index: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    # Padding rows point at example 0, a valid row to gather; their weight is what excludes them.
    padded, weight = np.zeros(rows, np.int32), np.zeros(rows, np.float32)
    padded[: len(index)] = index
    weight[: len(index)] = 1
    return padded, weight


def train_batch(
    seed: int, step: int, examples: int, batch_size: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """The batch of one training step.

    Every epoch is its own permutation of the data set. Its last partial batch is kept and
    never filled up from the next epoch (5,994 examples at 64: 93 batches of 64, one of 42).

    Args:
      seed: of the data order, >= 0.
      step: counts from 0.
      examples: in the data set.
      batch_size: examples per step.
      rows: length of the arrays, >= batch_size; pick it so that the devices divide it.

    Returns:
      index int32 [rows], weight float32 [rows]: 1 for an example, 0 for padding (at the end).

    Raises:
      ValueError: rows < batch_size, a negative step, or nothing to draw from.
    """
    if rows < batch_size or step < 0:
        raise ValueError(
            f"need rows >= batch_size and step >= 0, got {rows=} {batch_size=} {step=}"
        )
    epoch, batch = divmod(step, steps_per_epoch(examples, batch_size))
    order = _permutation(seed, epoch, examples)
    return _padded(order[batch * batch_size : (batch + 1) * batch_size], rows)


def eval_batches(examples: int, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every example exactly once, in order, as (index int32 [rows], weight float32 [rows])."""
    for start in range(0, examples, rows):
        yield _padded(np.arange(start, min(start + rows, examples), dtype=np.int32), rows)
