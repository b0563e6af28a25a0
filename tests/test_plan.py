"""The order of examples: every epoch a permutation, every step a pure function."""

import numpy as np
import pytest

from sdfp.data import plan


def epoch_of(epoch, examples, batch_size, rows, seed=0):
    steps = plan.steps_per_epoch(examples, batch_size)
    return [
        plan.train_batch(seed, step, examples, batch_size, rows)
        for step in range(epoch * steps, (epoch + 1) * steps)
    ]


@pytest.mark.parametrize(
    ("examples", "batch_size", "rows"),
    [
        (5994, 64, 64),
        (5994, 64, 72),
        (128, 64, 64),
        (63, 64, 64),
        (65, 64, 64),
        (1, 1, 8),
        (7, 3, 4),
    ],
)
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_epoch_is_a_permutation(examples, batch_size, rows, epoch):
    batches = epoch_of(epoch, examples, batch_size, rows)
    seen = np.concatenate([index[weight == 1] for index, weight in batches])
    assert sorted(seen) == list(range(examples))
    for index, weight in batches:
        assert index.shape == weight.shape == (rows,)
        assert index.dtype == np.int32
        assert weight.dtype == np.float32
        assert set(weight) <= {0, 1}
        assert index.min() >= 0
        assert index.max() < examples


def test_cub_has_93_full_batches_and_one_of_42():
    sizes = [int(weight.sum()) for _, weight in epoch_of(0, 5994, 64, 64)]
    assert sizes == [64] * 93 + [42]


def test_pure_function_of_seed_and_step():
    first = plan.train_batch(1, 17, 100, 8, 8)[0].copy()
    plan._permutation.cache_clear()
    np.testing.assert_array_equal(plan.train_batch(1, 17, 100, 8, 8)[0], first)
    assert not np.array_equal(plan.train_batch(2, 17, 100, 8, 8)[0], first)
    # The next epoch is another permutation (13 steps per epoch).
    assert not np.array_equal(plan.train_batch(1, 17 + 13, 100, 8, 8)[0], first)


def test_padding_does_not_change_the_order():
    for step in range(20):
        narrow, wide = (plan.train_batch(0, step, 100, 8, rows) for rows in (8, 16))
        np.testing.assert_array_equal(wide[0][:8], narrow[0])
        np.testing.assert_array_equal(wide[1], np.concatenate([narrow[1], np.zeros(8)]))


def test_the_permutation_is_drawn_once_per_epoch():
    plan._permutation.cache_clear()
    epoch_of(0, 100, 8, 8)
    assert plan._permutation.cache_info().misses == 1


def test_a_caller_cannot_spoil_later_batches():
    index, _ = plan.train_batch(0, 0, 10, 5, 5)
    before = index.copy()
    index[:] = -1
    np.testing.assert_array_equal(plan.train_batch(0, 0, 10, 5, 5)[0], before)


@pytest.mark.parametrize("examples", [0, 1, 7, 8, 9, 16, 17])
def test_evaluation_counts_every_example_once(examples):
    batches = list(plan.eval_batches(examples, 8))
    seen = [i for index, weight in batches for i in index[weight == 1]]
    assert seen == list(range(examples))
    assert all(index.shape == weight.shape == (8,) for index, weight in batches)


@pytest.mark.parametrize("wrong", [(0, 5, 10, 8, 7), (0, -1, 10, 8, 8), (0, 0, 0, 8, 8)])
def test_impossible_requests(wrong):
    with pytest.raises(ValueError, match="need"):
        plan.train_batch(*wrong)
