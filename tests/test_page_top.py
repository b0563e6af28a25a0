"""The top of report.html, what it answers; and how a run ends with it."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from comparison_results import PLAIN, entry, results, saved, scores
from page_helpers import Page, falling, made, metrics, record

from sdfp import experiment, lock, page, table
from sdfp.page import document
from sdfp.types import UserError


def probes(*scores, examples=100, every=10):
    """Lines of probes with these k-NN accuracies; the linear one stays."""
    told = {"probe_linear": 80.0, "probe_examples": examples, "probe_seconds": 0.1}
    return [{"step": every * i, "probe_knn": score} | told for i, score in enumerate(scores)]


def column(found, name):
    """{row: its cell} of the first table."""
    head, *rows = found.tables[0]
    return {row[0]: row[head.index(name)] for row in rows}


def test_verdicts(tmp_path):
    """What a reader wants to know first: whether a row is better, and whether that is luck."""
    shift = lambda by, *off: [x["value"] + by + o for x, o in zip(PLAIN, off, strict=True)]
    told = results(
        [
            *PLAIN,
            *scores("mars", *shift(5.0, 0.1, 0, -0.1)),
            *scores("recadam", *shift(0.5, 4, 0, -4)),
            *scores("r3f", *shift(-2.0, 0.01, 0, -0.01)),
            *scores("tf_reg", *shift(0.0, 1, 0, -1)),
            entry("kd", 0, 51.0),
        ]
    )
    found = made(saved(tmp_path, told))
    for line in (
        "mars: test accuracy (%) 59.00 ± 4.48 over 3 runs; against finetune +5.00 points "
        "(p < 0.001): ahead, but it is the best of 4 comparisons",
        "Ahead of finetune: mars +5.00 points (p < 0.001)",
        "Behind finetune: r3f −2.00 points (p < 0.001)",
        "No difference to finetune shown: recadam +0.50 points (p = 0.849), tf_reg +0.00 points",
        "Not tested against finetune: kd +1.00 points",
    ):
        assert line in found.shown
    assert column(found, "verdict") == {
        **{"finetune": "–", "mars": "ahead", "recadam": "no difference shown", "r3f": "behind"},
        **{"tf_reg": "no difference shown", "kd": "not tested"},
    }


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        (PLAIN, "finetune: test accuracy (%) 54.00 ± 4.58 over 3 runs "),
        ([*PLAIN, *scores("mars", 1.0, 2.0, 4.0)], "; no row is above plain finetune "),
        (scores("mars", 1.0), "over 1 run; there is no row finetune to compare it with "),
    ],
)
def test_the_best_row(tmp_path, entries, line):
    assert line in made(saved(tmp_path, results(entries))).shown


def test_what_the_probe_says(tmp_path):
    """A change is told where it exceeds the probe's errors, for so many examples."""
    for name, found in {
        "worse": probes(70.0, 72.0, 50.0),
        "better": probes(50.0, 60.0, 70.0),
        "few": probes(50.0, 60.0, 70.0, examples=20),
    }.items():
        metrics(tmp_path / "stages" / name, [*falling(3), *found])
    bits = lambda hits: {"probe_knn_right": np.packbits(hits).tobytes().hex()}
    lines = probes(70.0, 60.0)
    lines[0] |= bits(np.arange(100) < 70)
    lines[1] |= bits(np.arange(100) < 60)  # 10 lost and none gained; of two samples: chance
    metrics(tmp_path / "stages/paired", [*falling(3), *lines])
    older = probes(70.0, 50.0)
    for line in older:
        del line["probe_examples"]
    metrics(tmp_path / "stages/older", [*falling(3), *older])
    shown = made(tmp_path).shown
    linear = "linear 80.0 → 80.0 %, no change shown"
    for line in (
        f"worse: k-NN 70.0 → 50.0 % (best 72.0 % at step 10), worse than before; {linear}",
        f"better: k-NN 50.0 → 70.0 %, better than before; {linear}",
        f"few: k-NN 50.0 → 70.0 %, no change shown; {linear}",
        "paired: k-NN 70.0 → 60.0 %, worse than before; linear 80.0 → 80.0 %, no change shown",
        "older: k-NN 70.0 → 50.0 %; linear 80.0 → 80.0 % ",
    ):
        assert line in shown


def test_the_band_of_a_probe(tmp_path):
    """One for each classifier, and none where it is unknown of how many examples."""
    metrics(tmp_path / "stages/a", [*falling(3), *probes(70.0, 71.0, 72.0)])
    assert document.html(tmp_path).count("opacity: 0.15") == 2
    without = probes(70.0, 70.0, 70.0)
    for line in without:
        del line["probe_examples"]
    metrics(tmp_path / "stages/a", [*falling(3), *without])
    assert document.html(tmp_path).count("opacity: 0.15") == 0


def test_a_stage_that_over_fits_while_it_goes_on(tmp_path):
    """It has no record yet; of a finished one the record is what counts."""
    lines = [*falling(9), *probes(60.0, 80.0, 60.0, 50.0, 40.0, examples=500, every=20)]
    metrics(tmp_path / "stages/further_pretrain", lines)
    warning = "further_pretrain: the k-NN accuracy of frozen features was 80.0 % at step 20"
    told = results([], ["further_pretrain", "finetune"], complete=False)
    found = made(saved(tmp_path, told))
    assert warning in found.shown
    assert "cells measured so far: further_pretrain (none), finetune (none)" in found.shown
    assert "unfinished stages: further_pretrain (step 90 of ?)" in found.shown
    told["stages"] = [record("further_pretrain")]
    found = made(saved(tmp_path, told))
    assert warning not in found.shown
    assert "unfinished stages" not in found.shown


@pytest.mark.parametrize(("asked", "told"), [(3, "mars (4 of 9)"), (1, "mars (2 of 3)")])
def test_which_cells_are_lacking(tmp_path, asked, told):
    """A row that pre-trains has a cell for each pre-training seed and fine-tuning seed."""
    cells = [entry("mars", seed, 50.0, again) for again in range(2) for seed in range(2)]
    cells = cells[: 4 if asked == 3 else 2]
    found = results([*PLAIN, *cells], complete=False, pretrain_seeds=asked)
    found["config"]["methods"] = ["finetune", "mars", "r3f"]
    shown = made(saved(tmp_path, found)).shown
    assert f"cells measured so far: {told}, r3f (none)." in shown


def test_candidates(tmp_path):
    """All that were tried, the choice, and why one is out."""
    tried = [
        {"settings": {"mars.radius": 2.0}, "values": [60.0, 62.0], "mean": 61.0, "errors": []},
        {"settings": {"mars.radius": 8.0}, "values": [None], "mean": None, "errors": ["<b>NaN"]},
    ]
    made_of = {"split": "validation", "metric": "accuracy", "candidates": tried, "chosen": 0}
    told = results([*PLAIN, entry("mars", 0, 55.0)], tuning={"mars": made_of})
    found = made(saved(tmp_path, told))
    assert "Settings tried for mars" in found.shown
    assert [
        ["settings", "validation accuracy (%)", "each seed", ""],
        ["radius=2.0", "61.00", "60.00, 62.00", "chosen"],
        ["radius=8.0", "–", "–", "<b>NaN"],
    ] in found.tables


# --- how a run ends


def fail(error):
    def raised(*given):
        raise error

    return raised


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [(UserError("no space"), 2, "no space"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_the_page_of_a_run_that_ends_early(tmp_path, monkeypatch, capsys, error, code, line):
    saved(tmp_path, results(PLAIN, complete=False))
    monkeypatch.setattr(experiment, "run", fail(error))
    assert table.main(["--config", "configs/digits.py", f"--workdir={tmp_path}"]) == code
    found = Page((tmp_path / "report.html").read_text())
    assert "The run has not come to its end" in found.shown
    out, err = capsys.readouterr()
    assert (out, err) == (f"report: {tmp_path / 'report.html'}\n", f"sdfp: {line}\n")


@pytest.mark.parametrize("fault", [UserError("a"), ZeroDivisionError("a")])
def test_a_page_that_fails_is_not_the_run_s_error(tmp_path, monkeypatch, capsys, fault):
    """Neither in the place of one, nor where there is none; but it is told."""
    saved(tmp_path, results(PLAIN))
    monkeypatch.setattr(document, "html", fail(fault))
    with page.written_last(tmp_path):
        pass
    with pytest.raises(UserError, match="the run's own"), page.written_last(tmp_path):
        raise UserError("the run's own")
    out, err = capsys.readouterr()
    assert out.count("warning: report.html is not up to date: a") == 2
    assert err.count("ZeroDivisionError: a") == (0 if isinstance(fault, UserError) else 2)


def test_nothing_begun_leaves_no_page(tmp_path):
    with pytest.raises(UserError), page.written_last(tmp_path):
        raise UserError("a misspelt setting")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_changes_nothing(tmp_path):
    """Nor does it look as if it had: the page of the run before stays."""
    metrics(saved(tmp_path, results(PLAIN)) / "stages/a", falling(3))
    (tmp_path / "report.html").write_text("as it was")
    with pytest.raises(UserError), page.written_last(tmp_path):
        raise UserError("other settings")
    assert (tmp_path / "report.html").read_text() == "as it was"


@pytest.mark.parametrize("seconds", [10, -10])  # the clock may have been set back
def test_what_changes_gets_a_new_page(tmp_path, seconds):
    metrics(saved(tmp_path, results(PLAIN)) / "stages/a", falling(3))
    (tmp_path / "report.html").write_text("as it was")
    now = (tmp_path / "report.html").stat().st_mtime + seconds
    with page.written_last(tmp_path):
        os.utime(tmp_path / "stages/a/metrics.jsonl", (now, now))
    assert (tmp_path / "report.html").read_text() != "as it was"


def test_the_page_of_a_run_that_goes_on_is_left_alone(tmp_path, capsys):
    """By a second run, which the lock refuses while the first one writes its results."""
    saved(tmp_path, results(PLAIN))
    (tmp_path / "report.html").write_text("as it was")

    def second():
        with page.written_last(tmp_path):
            saved(tmp_path, results(PLAIN, complete=False))
            with lock.held(tmp_path):
                raise AssertionError("not reached")

    with lock.held(tmp_path):
        with pytest.raises(lock.Busy):
            second()
        assert (tmp_path / "report.html").read_text() == "as it was"
        assert (tmp_path / lock.NAME).exists()
    assert capsys.readouterr().out == ""


ENDS_LATE = """
import sys, time
from pathlib import Path
from sdfp import cli, page, signals
from sdfp.page import document

def slow(workdir):
    print("writes", flush=True)
    time.sleep(60)

document.html = slow
workdir = Path(sys.argv[1])

def run():
    with signals.handled(), page.written_last(workdir):
        (workdir / "results.json").write_text("{}")

sys.exit(cli.exit_code(run))
"""


def test_a_signal_while_the_page_is_written(tmp_path):
    """It stays as it was, and the exit code is that of any signal."""
    (tmp_path / "report.html").write_text("as it was")
    command = [sys.executable, "-c", ENDS_LATE, str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "writes\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert err.splitlines()[-1].startswith("sdfp: stopped by SIGTERM")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "results.json": "{}",
        "report.html": "as it was",
    }


def test_training_does_not_wait_for_figures():
    """What a page is drawn with is imported when one is written."""
    code = "import sys, sdfp.main, sdfp.table; print({'matplotlib', 'jinja2'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
