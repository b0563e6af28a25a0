"""report.html of real tiny runs."""

import csv
import json
import shutil
import sys
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import table_runs
from comparison_results import saved
from page_helpers import Page, curves, decoded, made
from PIL import Image

from sdfp import rendering, report
from sdfp.comparison import open_runs


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A work directory of two rows and seeds, made by sdfp.table."""
    workdir = tmp_path_factory.mktemp("page") / "images"
    more = ("--config.run.pictures=2", "--methods", "finetune,further_pretrain", "--seeds", "2")
    assert table_runs.make(workdir, *more) == 0
    return workdir


def test_written_by_the_table_command(images):
    before = (images / "report.html").read_bytes()
    made(images)
    assert (images / "report.html").read_bytes() == before  # of the same files the same page


def test_the_table_is_that_of_the_results(images):
    found = made(images)
    (run,) = open_runs([images])
    table = rendering.table([run])
    shown = found.tables[0]
    assert [row.pop(5) for row in shown][:2] == ["verdict", "–"]
    width = len(table.rows[0])
    assert [row[:width] for row in shown] == table.rows
    assert shown[0][width:] == ["test loss", "train loss", "distance"]
    summary = table_runs.results(images)["summary"]
    for row in shown[1:]:
        of = summary[row[0]]
        columns = ("test_loss", "train_loss", "distance")
        assert row[width:] == [f"{of[c]['mean']:.3f} ± {of[c]['std']:.3f}" for c in columns]
    for note in table.notes:
        assert note in found.shown


def test_every_stage_has_its_curves(images):
    found = made(images)
    assert curves(found) == [
        "Training loss of further_pretrain against steps",
        "Training loss of finetune against steps, a line per seed",
        "Training loss of further_pretrain against steps, a line per seed",
    ]
    assert found.count("svg") == 4  # and the scores
    assert "No probe of the features was kept." in found.shown
    (drawn,) = [x for x in found.images() if x["alt"].startswith("Reconstructions of further")]
    kept = Image.open(images / "stages/further_pretrain/reconstructions.png")
    assert np.array_equal(np.asarray(decoded(drawn)), np.asarray(kept))


@pytest.mark.parametrize("method", ["finetune", "further_pretrain"])
def test_mistakes_are_the_worst_ones(images, method):
    """Those of predictions.csv, most certain first, with the image of that id."""
    folder = images / f"stages/finetune/{method}/seed_0"
    wrong = [row for row in rows_of(folder / "predictions.csv") if row["label"] != row["predicted"]]
    wrong.sort(key=lambda row: -float(row["probability"]))
    kept = json.loads((folder / "mistakes.json").read_text())
    assert len(kept) == min(12, len(wrong)) > 3
    told = [float(row["probability"]) for row in wrong[: len(kept)]]
    assert [x["probability"] for x in kept] == told
    by_id = {row["id"]: row for row in wrong}
    for mistake in kept:
        row = by_id[mistake["id"]]
        assert (mistake["label"], mistake["predicted"]) == (row["label"], row["predicted"])
    found = made(images)
    shown = {image["alt"]: decoded(image) for image in found.images()}
    for mistake in kept:
        stored = np.asarray(Image.open(folder / mistake["image"]))
        assert stored.shape == (8, 8)
        assert np.array_equal(np.asarray(shown[f"Example {mistake['id']}"]), stored)
        told = f"predicted {mistake['predicted']} with {100 * mistake['probability']:.1f} %"
        assert told in found.shown


def test_the_image_is_the_one_of_the_id(images):
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder = images / "stages/finetune/finetune/seed_0"
    for mistake in json.loads((folder / "mistakes.json").read_text()):
        number = int("".join(c for c in mistake["id"] if c.isdigit()))
        expected = np.rint(digits.images[number] / 16 * 255)
        stored = np.asarray(Image.open(folder / mistake["image"]), np.float64)
        assert np.abs(stored - expected).max() <= 1
        assert mistake["label"] == str(digits.target[number])


def test_the_confusion_matrix_is_that_of_the_file(images):
    folder = images / "stages/finetune/further_pretrain/seed_0"
    with (folder / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    matrix = np.array([row[1:] for row in rows], int)
    *_, shown = [table for table in made(images).tables if "recall" in table[0]]
    assert shown[0] == ["true \\ predicted", *header[1:], "recall"]
    for i, row in enumerate(shown[1:]):
        assert row[0] == rows[i][0]
        assert row[1:-1] == rows[i][1:]
        assert row[-1] == f"{100 * matrix[i, i] / matrix[i].sum():.1f} %"


def test_only_the_best_row_is_open(images):
    means = [run["accuracy"]["mean"] for run in table_runs.results(images)["summary"].values()]
    details = [found for tag, found in made(images).tags if tag == "details"]
    rows = [found for found in details if found.get("id", "").startswith("row-")]
    best = means.index(max(means))
    assert ["open" in found for found in rows] == [place == best for place in range(2)]


def test_what_was_run(images):
    found = made(images)
    told = table_runs.results(images)
    assert told["command"] == ""  # a test is no command of sdfp's
    assert "The command is unknown" in found.shown
    assert "Random parameters (scratch), config.init.seed 0." in found.shown
    assert found.shown.count(told["data"]["fingerprint"]) == 1
    for record in told["stages"]:
        assert record["digest"][:12] in found.shown
    pairs = dict(row for table in found.tables for row in table if len(row) == 2)
    assert pairs["stages.finetune.learning_rate"] == "0.01"
    assert pairs["jax"] == told["versions"]["jax"]
    assert pairs["counts.test"] == str(told["data"]["counts"]["test"])
    assert "complete · no failed cells" in found.shown


def test_measured_before_there_were_mistakes(images, tmp_path):
    """They are not measured again for this; the ids are in predictions.csv."""
    work = shutil.copytree(images, tmp_path / "work")
    for path in work.glob("stages/finetune/*/*/mistakes.json"):
        path.unlink()
    found = made(work)
    assert found.shown.count("The examples were not kept with them") == 2
    rows = rows_of(work / "stages/finetune/finetune/seed_0/predictions.csv")
    worst = max(
        (row for row in rows if row["label"] != row["predicted"]),
        key=lambda row: float(row["probability"]),
    )
    assert worst["id"] in found.shown
    assert not [image for image in found.images() if image["alt"].startswith("Example")]


def test_a_run_that_is_going_on(images, tmp_path):
    """Without results.json; a line of metrics.jsonl is in the making."""
    work = shutil.copytree(images, tmp_path / "work")
    (work / "results.json").unlink()
    shutil.rmtree(work / "stages/finetune")
    shutil.rmtree(work / "stages/further_pretrain/final")
    path = work / "stages/further_pretrain/metrics.jsonl"
    first = json.dumps({"step": 1, "loss": 5.0, "masked": 5.0})
    path.write_text(first + '\n{"step": 2, "los')
    found = made(work)
    assert "no results.json yet" in found.shown
    assert "not finished: step 1 of 4 is logged" in found.shown
    assert len(curves(found)) == 1
    assert "No row has been measured" in found.shown


def test_interrupted_in_its_first_stage(tmp_path, monkeypatch):
    """What was asked for and how far it came is known from the start."""
    table_runs.watch(monkeypatch, {"further_pretrain": table_runs.interrupt})
    rows = ("--methods", "further_pretrain,finetune", "--seeds", "2")
    assert table_runs.make(tmp_path, *rows) == 130
    found = Page((tmp_path / "report.html").read_text())
    assert "The run has not come to its end" in found.shown
    assert "further_pretrain (none), finetune (none)" in found.shown
    assert "Random parameters (scratch), config.init.seed 0." in found.shown


def test_no_example_is_kept_nor_shown(images, tmp_path):
    """Where pictures are set to 0 afterwards, what is there already is not shown either."""
    shared = "This page holds examples of the data"
    assert shared in made(images).shown
    work = shutil.copytree(images, tmp_path / "work")
    told = table_runs.results(work)
    told["config"]["run"]["pictures"] = 0
    found = made(saved(work, told))
    assert found.images() == []
    assert shared not in found.shown
    assert "Without the examples: config.run.pictures is 0." in found.shown
    fresh, rows = tmp_path / "fresh", ("--methods", "finetune", "--seeds", "1")
    assert table_runs.make(fresh, *rows) == 0  # with pictures=0
    kept = json.loads((fresh / "stages/finetune/finetune/seed_0/mistakes.json").read_text())
    assert {*kept[0]} == {"id", "label", "predicted", "probability"}
    assert [*fresh.rglob("*.png"), *fresh.rglob("reconstructions*")] == []


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("sdfp.main", "python3 -m sdfp.main '--x=a b' '$HOME'"),
        ("sdfp.page.__main__", "python3 -m sdfp.main '--x=a b' '$HOME'"),
        ("pytest.__main__", ""),
        (None, ""),
    ],
)
def test_the_command_line(monkeypatch, module, told):
    """Only a command of sdfp's repeats a run."""
    monkeypatch.setattr(
        sys, "orig_argv", ["/a b/bin/python3", "-m", "sdfp.main", "--x=a b", "$HOME"]
    )
    spec = ModuleSpec(module, None) if module else None
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    assert report.command() == told
