"""Several runs compared: what is read, and its statistics."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from comparison_results import (
    PLAIN,
    entry,
    line_of,
    notes,
    results,
    row_of,
    saved,
    scores,
    single,
)

from sdfp import comparison, rendering
from sdfp.types import UserError


def test_mean_std_and_p_by_hand():
    """Differences 1, 2, 3: t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)."""
    plain, row = comparison.lines(results([*PLAIN, *scores("mars", 51.0, 55.0, 62.0)]))
    assert (plain.mean, plain.std) == (54.0, pytest.approx(21**0.5))  # (16 + 1 + 25) / 2
    assert (plain.difference, plain.p_value, plain.pairs) == (None, None, 0)
    assert (row.mean, row.std) == (56.0, pytest.approx(31**0.5))  # (25 + 1 + 36) / 2
    assert (row.n, row.seeds, row.pretrain_seeds, row.failed) == (3, 3, 1, 0)
    assert row.values == (51.0, 55.0, 62.0)
    assert (row.difference, row.pairs) == (2.0, 3)
    assert row.p_value == pytest.approx(1 - 12**0.5 / 14**0.5, rel=1e-12)
    assert (row.metric, row.split) == ("accuracy", "test")


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_p_is_that_of_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(70, 3, (2, n))
    found = comparison.paired(dict(enumerate(a)), dict(enumerate(b)))
    assert found[0] == pytest.approx(a.mean() - b.mean())
    assert found[1] == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, rel=1e-9)
    assert found[2] == n


def test_p_of_far_differences():
    """With 1 degree of freedom p = 1 - 2 atan(t) / pi; and no underflow to a wrong side."""
    assert comparison.paired({0: 3.0, 1: 1.0}, {0: 0.0, 1: 0.0})[1] == pytest.approx(
        1 - 2 * math.atan(2) / math.pi
    )
    row = {seed: 50 + 1e-3 * seed for seed in range(9)}
    p = comparison.paired(row, dict.fromkeys(row, 10.0))[1]
    assert p is not None
    assert 0 < p < 1e-20


def test_only_seeds_of_both_rows_are_paired():
    """Seeds 1 and 2 are common: differences 2 and 4, t = 3."""
    row = [entry("mars", seed, value) for seed, value in [(2, 63.0), (1, 55.0), (7, 0.0)]]
    line = line_of(results([*PLAIN, *row]), "mars")
    assert (line.mean, line.n) == (pytest.approx(118 / 3), 3)
    assert (line.difference, line.common, line.pairs) == (3.0, 2, 2)
    assert line.p_value == pytest.approx(1 - 2 * math.atan(3) / math.pi)
    assert "both rows have (2)" in notes(single(results([*PLAIN, *row])))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([55.0], (5.0, None, 1)),  # one pair
        ([55.1, 58.1, 64.1], (pytest.approx(5.1), None, 3)),  # the same but for rounding
        ([50.0, 53.0, 59.0], (0.0, 1.0, 3)),
    ],
)
def test_p_where_there_is_none(values, expected):
    """Warnings are errors here: none comes of it."""
    line = line_of(results([*PLAIN, *scores("mars", *values)]), "mars")
    assert (line.difference, line.p_value, line.common) == expected
    assert line.test == ("" if line.p_value is None else "paired")


def test_no_common_seed_and_no_plain_row():
    other = [entry("mars", 8, 1.0), entry("mars", 9, 2.0)]
    for found in (results([*PLAIN, *other]), results(other)):
        line = line_of(found, "mars")
        assert (line.difference, line.p_value, line.pairs) == (None, None, 0)
        assert "No Δ and no p" in notes(single(found))


def test_one_seed_has_no_spread():
    table = single(results([entry("finetune", 0, 50.0), entry("mars", 0, 51.0)]))
    assert line_of(results([entry("mars", 0, 51.0)]), "mars").std is None
    assert row_of(table, "mars")["accuracy (%)"] == "51.00"
    assert "No spread: one value per row." in table.notes
    assert "t-test" not in notes(table)


def pretrained(method, table):
    """A row with several pre-training seeds; `table` has a line for each of them."""
    return [
        entry(method, seed, value, pretrain_seed=again)
        for again, values in enumerate(table)
        for seed, value in enumerate(values)
    ]


def test_several_pretraining_seeds_by_hand():
    """Δ: per fine-tuning seed 52, 57, 65, so 2, 4, 6. p: 56.67 and 59.33 for the pre-training
    seeds, with variance 32/9, against 50, 53, 59 with variance 21. ± is over all six values."""
    row = pretrained("further_pretrain", [[51.0, 54.0, 65.0], [53.0, 60.0, 65.0]])
    found = results([*PLAIN, *row])
    line = line_of(found, "further_pretrain")
    assert (line.n, line.pretrain_seeds, line.seeds, line.common) == (6, 2, 3, 3)
    assert (line.test, line.pairs, line.pretrains) == ("welch", 0, True)
    assert (line.mean, line.difference) == (58.0, 4.0)
    assert line.std == pytest.approx(((49 + 25 + 16 + 4 + 49 + 49) / 5) ** 0.5)
    u, v = 32 / 9 / 2, 21 / 3
    p = 2 * scipy.stats.t.sf(4 / (u + v) ** 0.5, (u + v) ** 2 / (u**2 / 1 + v**2 / 2))
    assert line.p_value == pytest.approx(p, rel=1e-9)
    assert line_of(results([*row, *PLAIN[::-1]]), "further_pretrain").p_value == line.p_value


def test_the_difference_is_the_one_that_is_tested():
    """Over the fine-tuning seeds of all: else the sign would be of one and p of another."""
    plain = scores("finetune", 50.0, 51.0, 52.0, 60.0, 61.0)
    row = pretrained("mars", [[53.0, 54.0, 55.0], [53.5, 54.5, 55.5]])
    line = line_of(results([*plain, *row]), "mars")
    assert (line.difference, line.common, line.test) == (3.25, 3, "welch")
    p = scipy.stats.ttest_ind([54.0, 54.5], [50.0, 51.0, 52.0], equal_var=False).pvalue
    assert line.p_value == pytest.approx(p, rel=1e-9)
    # A cell that one pre-training seed lacks is left out of the other, too.
    line = line_of(results([*plain, *row[:-1]]), "mars")
    assert (line.difference, line.common, line.n) == (3.25, 2, 5)
    p = scipy.stats.ttest_ind([53.5, 54.0], [50.0, 51.0], equal_var=False).pvalue
    assert line.p_value == pytest.approx(p, rel=1e-9)
    assert "(n = 2), of the fine-tuning" in notes(single(results([*plain, *row[:-1]])))


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (10, 2), (40, 30)])
def test_welch_is_that_of_scipy(sizes):
    rng = np.random.default_rng(sizes)
    for shift in (0.0, 1.0, 30.0):
        a, b = rng.normal(70 + shift, 3, sizes[0]), rng.normal(70, 0.5, sizes[1])
        expected = scipy.stats.ttest_ind(a, b, equal_var=False).pvalue
        assert comparison.welch([*a], [*b]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("row", "plain", "expected"),
    [
        ([1.0], [1.0, 2.0], None),
        ([1.0, 2.0], [1.0], None),
        ([1.0, math.inf], [1.0, 2.0], None),
        ([1.0, 2.0], [1.0, math.nan], None),
        ([0.1 + 0.2, 0.3], [0.3, 0.3], 1.0),  # the same but for rounding
        ([2.0, 2.0], [1.0, 1.0], None),
        # One side has a variance: t = 1/3 with 1 degree of freedom.
        ([2.0, 2.0], [1.0, 4.0], pytest.approx(1 - 2 * math.atan(1 / 3) / math.pi)),
    ],
)
def test_welch_where_there_is_none(row, plain, expected):
    """Warnings are errors here: none comes of it."""
    assert comparison.welch(row, plain) == expected


def test_several_pretraining_seeds_and_too_little_to_test():
    """One value of plain fine-tuning, or none that the row has a seed with: no p."""
    row = pretrained("mars", [[51.0, 54.0], [53.0, 60.0]])
    line = line_of(results([PLAIN[0], *row]), "mars")
    assert (line.difference, line.common, line.test, line.p_value) == (2.0, 1, "", None)
    for plain in ([], scores("finetune", *range(5))[2:]):
        line = line_of(results([*plain, *row]), "mars")
        assert (line.difference, line.common, line.test, line.p_value) == (None, 0, "", None)


def test_false_positives_where_pretraining_varies():
    """No true effect; pre-training's deviation 1, fine-tuning's 0.5, 3 and 5 seeds of them.
    Pairing what is averaged over the pre-training seeds is wrong far more often than one in 20."""
    rng, low, wrong = np.random.default_rng(0), [], []
    for _ in range(1000):
        plain = rng.normal(70, 0.5, 5)
        table = rng.normal(70, 1, (3, 1)) + rng.normal(0, 0.5, (3, 5))
        found = comparison.compared(pretrained("mars", table), scores("finetune", *plain))
        assert found[2] == "welch"
        low.append(found[3] < 0.05)
        averaged = dict(enumerate(table.mean(0)))
        wrong.append(comparison.paired(averaged, dict(enumerate(plain)))[1] < 0.05)
    assert 0.02 < np.mean(low) < 0.08
    assert np.mean(wrong) > 0.25


def test_one_pretraining_seed_is_paired():
    """And told apart from a row without any pre-training; failed repeats count as none."""
    row = pretrained("mars", [[51.0, 55.0, 62.0]])
    failed = [{"method": "mars", "seed": None, "pretrain_seed": 1, "error": "x"}]
    line = line_of(results([*PLAIN, *row], failed=failed), "mars")
    assert (line.test, line.pairs, line.pretrains, line.failed) == ("paired", 3, True, 3)
    assert line.p_value == pytest.approx(1 - 12**0.5 / 14**0.5)
    assert not line_of(results(PLAIN), "finetune").pretrains


def test_failed_cells_count_once():
    """A failure without a seed is that of all seeds with its pre-training seed; of candidates
    that others were chosen over nothing counts."""
    of = {"method": "mars", "error": "x"}
    failed = [
        {**of, "seed": None, "pretrain_seed": 1, "varied": {"mars.radius": 2}},
        {**of, "seed": 1, "pretrain_seed": 1, "varied": {"mars.radius": 2}},
        {**of, "seed": 1, "pretrain_seed": 0, "varied": {"mars.radius": 2}},
        {**of, "seed": 2, "pretrain_seed": 0, "varied": {"mars.radius": 1}},
    ]
    row = scores("mars", 5.0, pretrain_seed=0, varied={"mars.radius": 2})
    found = results([*PLAIN, *row], failed=failed)
    assert line_of(found, "mars").failed == 4
    assert comparison.failures(found) == failed[:3]
    gone = results(PLAIN, ["finetune", "mars"], failed=failed)
    assert line_of(gone, "mars").failed == 5
    assert comparison.failures(gone) == failed
    older = [{key: cell[key] for key in cell if key != "varied"} for cell in row]
    assert line_of(results([*PLAIN, *older], failed=[{**of, "seed": 1}]), "mars").failed == 1


def test_cost_is_of_one_run_with_shared_stages():
    """Two cells: 100 + 10 steps each, 50 + 6 and 50 + 8 seconds; a stage counts once."""
    stages = [
        {"name": "further", "steps": 100, "seconds": 3590.0},
        {"name": "f0", "steps": 10, "seconds": 6.0},
        {"name": "f1", "steps": 10, "seconds": 8.4},
        {"name": "other", "steps": 7, "seconds": 1.0},
    ]
    row = [entry("mars", s, 5.0, stages=["further", "further", f"f{s}"]) for s in (0, 1)]
    plain = [entry("finetune", s, 5.0, stages=[f"f{s}"]) for s in (0, 1)]
    found = results([*plain, *row], stages=stages)
    assert (line_of(found, "mars").steps, line_of(found, "mars").seconds) == (110, 3597.2)
    table = single(found)
    assert (row_of(table, "mars")["steps"], row_of(table, "mars")["time"]) == ("110", "0:59:57")
    assert row_of(table, "finetune")["time"] == "0:00:07"
    assert "counted in each of them" in notes(table)
    assert "compilation included, probes and evaluation not, on 1 x cpu" in notes(table)
    assert "search" not in notes(table)
    searched = {"candidates": [], "split": "validation"}
    assert "without the search" in notes(single(found | {"tuning": {"mars": searched}}))


def test_older_results_lack_what_they_lack():
    """No stages of a cell, no failures, no tuning, no losses: the table is made all the same."""
    keys = ("method", "seed", "split", "metric", "value")
    entries = [{key: cell[key] for key in keys} for cell in [*PLAIN, *scores("mars", 1, 2, 3)]]
    found = results(entries, stages=[])
    line = line_of(found, "mars")
    assert (line.steps, line.seconds, line.means, line.varied) == (None, None, {}, {})
    assert (line.precision, line.pretrains) == ("", False)
    assert row_of(single(found), "mars")["time"] == "–"
    assert "compilation" not in notes(single(found))
    partly = [entry("mars", 0, 1.0, stages=["known"]), entry("mars", 1, 1.0, stages=["gone"])]
    record = {"name": "known", "steps": 1, "seconds": 1.0}
    assert line_of(results(partly, stages=[record]), "mars").steps is None
    del record["seconds"]
    line = line_of(results(partly[:1], stages=[record]), "mars")
    assert (line.steps, line.seconds) == (1, None)


def test_a_run_where_everything_failed(tmp_path):
    failed = [{"method": "mars", "seed": None, "pretrain_seed": None, "error": "why"}]
    found = results([], ["mars"], failed=failed)
    (run,) = comparison.open_runs([saved(tmp_path / "run", found)])
    assert rendering.table([run]).rows[1][:3] == ["mars", "failed", "0"]
    assert rendering.table([run]).rows[0][1] == "score"


def test_labels_are_unique(tmp_path):
    """By the folder's name; by its path where that is the same as well."""
    names = {"x/run": "digits", "y/run": "digits", "z": "digits", "u": "dtd"}
    folders = [
        saved(tmp_path / folder, results(PLAIN, name=name)) for folder, name in names.items()
    ]
    assert [run.label for run in comparison.open_runs(folders)] == [
        f"digits ({(tmp_path / 'x/run').resolve()})",
        f"digits ({(tmp_path / 'y/run').resolve()})",
        "digits (z)",
        "dtd",
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "no results.json there; name the work directory of a run"),
        ('{"config": ', "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        ("[1]", "not the results of a run"),
        ('{"config": {"name": "x"}}', "not the results of a run"),
        (json.dumps(results([], ["finetune"])), "no results in it"),
    ],
)
def test_what_cannot_be_read(tmp_path, text, match):
    if text is not None:
        raw = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "results.json").write_bytes(raw)
    with pytest.raises(UserError, match=match) as caught:
        comparison.read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_work_directories_that_cannot_be_compared(tmp_path):
    folder = saved(tmp_path / "run", results(PLAIN))
    with pytest.raises(UserError, match="run is named twice"):
        comparison.open_runs([folder, tmp_path / "run" / ".." / "run"])
    with pytest.raises(UserError, match="no work directory named"):
        comparison.open_runs([])


def test_starts_without_the_slow_libraries():
    code = "import sys; from sdfp import rendering; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "sdfp.comparison" in loaded
    assert not loaded & {"flax", "optax", "orbax", "scipy.stats", "tensorboardX", "PIL"}
