"""Damaged files of a work directory: which file, and what to do, in one line. What can be made anew
is, and nothing that was trained is lost.

Damaged checkpoints are in test_checkpoint.py and test_resume.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_vit
from comparison_results import PLAIN, results, saved
from test_bad_inputs import refused

from sdfp import checked, checkpoint, comparison, files, points, sealed, trained
from sdfp import results as running
from sdfp.data.interface import Split
from sdfp.data.loading import Feed
from sdfp.models import vit_mae
from sdfp.models.interface import Card
from sdfp.page import document
from sdfp.train import evaluation, kept
from sdfp.types import UserError, WorkdirError

ROOT = Path(__file__).parents[1]
FOUND = results(
    PLAIN,
    stages=[
        {"name": "finetune/finetune/seed_0", "steps": 3, "seconds": 1.5, "examples_per_second": 2}
    ],
    tuning={"finetune": {"split": "validation", "metric": "accuracy", "candidates": []}},
    failed=[{"method": "mars", "seed": None, "error": "why"}],
)
BYTES = {
    "empty": b"",
    "zeros": bytes(500),
    "cut short": json.dumps(FOUND).encode()[:-30],
    "not UTF-8": b"\xff\xfe{}",
    "brackets": b"[" * 10**5,
    "a list": b"[]",
    "null": b"null",
    "truth": b"true",
    "not a number": b'{"metrics": {"loss": NaN}}',
    "infinity": b'{"metrics": {"loss": 1e999}}',
}
"""What a disk makes of any JSON file."""


# --- results.json


def changed(path, value, content=FOUND):
    """The JSON value with another value at a place."""
    content = json.loads(json.dumps(content))
    *before, last = path
    inner = content
    for key in before:
        inner = inner[key]
    inner[last] = value
    return content


VALUES = {
    ("config", "methods"): ("finetune", "config.methods is no list"),
    ("config", "seeds"): ([0, "1"], r"config.seeds\[1\] is no whole number"),
    ("config", "data"): (3, "config.data is no object"),
    ("results",): ({}, "results is no list"),
    ("results", 1): (None, r"results\[1\] is no object"),
    ("results", 0, "value"): ("50", r"results\[0\].value is no number"),
    ("results", 2, "value"): (None, r"results\[2\].value is no number"),
    ("results", 0, "method"): (7, r"results\[0\].method is no text"),
    ("results", 0, "seed"): (True, r"results\[0\].seed is no whole number"),
    ("results", 0, "varied"): ([], r"results\[0\].varied is no object"),
    ("results", 0, "stages"): ("x", r"results\[0\].stages is no list"),
    ("results", 0, "distance"): ({}, r"results\[0\].distance is no number"),
    ("stages", 0): (3, r"stages\[0\] is no object"),
    ("stages", 0, "steps"): (2.5, r"stages\[0\].steps is no whole number"),
    ("stages", 0, "seconds"): ("1", r"stages\[0\].seconds is no number"),
    ("failed",): (3, "failed is no list"),
    ("failed", 0, "error"): (None, r"failed\[0\].error is no text"),
    ("tuning",): ([], "tuning is no object"),
    ("tuning", "finetune"): ([], "tuning.finetune is no object"),
    ("tuning", "finetune", "candidates"): ([3], r"candidates\[0\] is no object"),
    ("data",): ({"counts": {"train": "many"}}, "data.counts.train is no whole number"),
    ("complete",): ("yes", "complete is no true or false"),
}
LACKING = {
    ("results", 0): ("value", r"results\[0\].value is missing"),
    ("failed", 0): ("error", r"failed\[0\].error is missing"),
    ("stages", 0): ("name", r"stages\[0\].name is missing"),
}


def all_readers(folder, why, what):
    """Every tool that reads a results.json says the same."""
    path = folder / "results.json"
    for read in (
        comparison.read,
        lambda folder: points.open_sources([folder]),
        document.html,
        lambda folder: trained.default_classifier(folder),
    ):
        told = refused(why, read, folder)
        assert told.startswith(f"{path}: {what}")
        assert "\0" not in told


@pytest.mark.parametrize("damage", BYTES)
def test_results_that_are_no_results(tmp_path, damage):
    (tmp_path / "stages").mkdir()
    (tmp_path / "results.json").write_bytes(BYTES[damage])
    parsed = damage in ("a list", "null", "truth")
    what = "not the results of a run; name" if parsed else "not readable as JSON: "
    why = "name the work directory" if parsed else "run the same command again"
    all_readers(tmp_path, why, what)


@pytest.mark.parametrize("path", VALUES)
def test_results_with_a_wrong_value(tmp_path, path):
    value, why = VALUES[path]
    (tmp_path / "stages").mkdir()
    saved(tmp_path, changed(path, value))
    all_readers(tmp_path, why + "; run the same command again", "damaged: ")


@pytest.mark.parametrize("path", LACKING)
def test_results_that_lack_a_value(tmp_path, path):
    (tmp_path / "stages").mkdir()
    key, why = LACKING[path]
    content = json.loads(json.dumps(FOUND))
    inner = content
    for step in path:
        inner = inner[step]
    del inner[key]
    saved(tmp_path, content)
    all_readers(tmp_path, why, "damaged: ")


def test_a_run_sets_damaged_results_aside(tmp_path, capsys):
    """All that it needs is in the stages."""
    path = tmp_path / "results.json"
    assert running.earlier(tmp_path) == {}
    saved(tmp_path, FOUND)
    assert running.earlier(tmp_path) == json.loads(json.dumps(FOUND))
    assert capsys.readouterr().out == ""
    path.write_bytes(BYTES["cut short"])
    assert running.earlier(tmp_path) == {}
    assert not path.exists()
    assert (tmp_path / "results.json.damaged").read_bytes() == BYTES["cut short"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {path}: not readable as JSON: ")
    assert line.endswith("It is set aside as results.json.damaged")


def test_results_that_cannot_be_set_aside(tmp_path):
    aside = tmp_path / "results.json.damaged"
    aside.mkdir()
    (tmp_path / "results.json").write_bytes(BYTES["cut short"])
    told = refused("which is a folder: move that away", running.earlier, tmp_path)
    assert f"It cannot be set aside as {aside}, " in told
    assert (tmp_path / "results.json").read_bytes() == BYTES["cut short"]


# --- what an evaluation leaves


class Devices:
    """That put nothing anywhere."""

    replicate = staticmethod(lambda tree: tree)


def evaluated(folder, monkeypatch) -> dict:
    """The metrics of three examples, measured or read."""
    label = np.array([0, 1, 1])
    split = Split({"label": label}, ("a", "b", "c"))
    found = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    monkeypatch.setattr(evaluation, "log_probabilities", lambda *_, **__: found)
    monkeypatch.setattr(evaluation.loading, "open_feed", lambda split, *_: Feed(split, {}, {}))
    how = {"class_names": ("x", "y"), "show": None, "resident_gb": 0, "devices": Devices}
    return evaluation.evaluate(folder, {}, {"params": "d"}, Feed(split, {}, {}), split, **how)


EVALUATIONS = {
    **BYTES,
    "no metrics": b'{"identity": {"params": "d"}}',
    "a list of metrics": b'{"identity": {"params": "d"}, "metrics": [1]}',
    "a metric that is a text": b'{"identity": {"params": "d"}, "metrics": {"accuracy": "1"}}',
    "an identity that is a text": b'{"identity": "d", "metrics": {}}',
}


@pytest.mark.parametrize("damage", EVALUATIONS)
def test_a_damaged_evaluation_is_told_and_measured_again(tmp_path, monkeypatch, capsys, damage):
    before = evaluated(tmp_path, monkeypatch)
    path = tmp_path / "evaluation.json"
    whole = path.read_bytes()
    assert evaluated(tmp_path, monkeypatch) == before
    assert capsys.readouterr().out == ""
    path.write_bytes(EVALUATIONS[damage])
    assert evaluated(tmp_path, monkeypatch) == before
    assert path.read_bytes() == whole
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {path}: ")
    assert line.endswith("it is measured again")


@pytest.mark.parametrize("lost", ["loss", "train_loss", "train_accuracy", "macro_f1"])
def test_an_evaluation_that_lacks_a_metric(tmp_path, monkeypatch, capsys, lost):
    before = evaluated(tmp_path, monkeypatch)
    path = tmp_path / "evaluation.json"
    content = json.loads(path.read_text())
    del content["metrics"][lost], content["sha256"]  # as an older version wrote it
    path.write_text(json.dumps(content))
    assert evaluated(tmp_path, monkeypatch) == before
    assert "measured again: other held-out data, class names or metrics" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [*BYTES.values(), b'{"identity": {}, "value": "1"}'])
def test_a_damaged_masked_loss_is_told_and_measured_again(tmp_path, monkeypatch, capsys, damage):
    monkeypatch.setattr(evaluation.loop, "map_examples", lambda *_, **__: np.array([1.0, 2.0]))
    monkeypatch.setattr(evaluation.loading, "open_feed", lambda *_: None)
    monkeypatch.setattr(evaluation, "_eval_masked_loss", lambda backbone: None)
    path = tmp_path / "masked_loss.json"
    path.write_bytes(damage)
    how = {"backbone": None, "prepare": len, "devices": Devices, "rows": 1, "resident_gb": 0}
    for _ in range(2):
        assert evaluation.masked_loss(tmp_path, {}, "d", Split({}, ()), "f", **how) == 1.5
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {path}: ")


# --- the files beside a checkpoint


@pytest.mark.parametrize("damage", BYTES)
def test_a_damaged_identity_stops_before_any_training(tmp_path, damage):
    path = tmp_path / "identity.json"
    path.write_bytes(BYTES[damage])
    with pytest.raises(WorkdirError, match="delete this file: it is written again") as caught:
        kept.check_known(tmp_path, {"seed": 0})
    assert str(caught.value).startswith(f"{path}: ")


def broken_link(path):
    path.symlink_to("nowhere")


OF_STAGE = {
    "final moved to a disk that is away": ("stages/s/final", broken_link, "a broken link (is its"),
    "final is a file": ("stages/s/final", Path.touch, "a folder belongs here, and a file is there"),
    "the stage is a file": ("stages/s", Path.touch, "a folder belongs here, and a file is there"),
    "the stage is away": ("stages/s", broken_link, "a broken link (is its disk mounted?)"),
    "all stages are away": ("stages", broken_link, "a broken link (is its disk mounted?)"),
    "model.json is a folder": ("stages/s/model.json", Path.mkdir, "and a folder is there: move it"),
}


@pytest.mark.parametrize("what", OF_STAGE)
def test_what_is_in_the_way_of_a_stage(tmp_path, capsys, what):
    """Told before any training, which its end could not save."""
    place, make, told = OF_STAGE[what]
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    make(tmp_path / place)
    with pytest.raises(WorkdirError) as caught:
        kept.keep(tmp_path, "s", {"seed": 0}, {"class_names": []}, pytest.fail)
    assert str(caught.value).startswith(f"{tmp_path / place}: ")
    assert told in str(caught.value)
    assert capsys.readouterr().out == ""
    assert os.path.lexists(tmp_path / place)


def test_without_its_identity_a_checkpoint_still_tells_whose_it_is(tmp_path):
    """What the line above counts on."""
    card, params = {"class_names": []}, {"a": np.ones(2, np.float32)}
    make = lambda directory: (params, {})
    kept.keep(tmp_path, "s", {"seed": 0}, card, make)
    (tmp_path / "stages/s/identity.json").unlink()
    assert not kept.keep(tmp_path, "s", {"seed": 0}, card, make).new
    (tmp_path / "stages/s/identity.json").unlink()
    with pytest.raises(WorkdirError, match=r"final: is of key .*, not of "):
        kept.keep(tmp_path, "s", {"seed": 1}, card, make)


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """A work directory with a fine-tuned model."""
    folder = tmp_path_factory.mktemp("run")
    settings = tiny_vit.settings()
    backbone = vit_mae.make(settings, jnp.float32)
    params = backbone.add_head(backbone.init(jax.random.key(0)), 2, jax.random.key(1))
    directory = folder / "stages/finetune/finetune/seed_0"
    checkpoint.save(directory / "final", jax.device_get(params), {"key": "k"})
    input = {"kind": "image", "image_size": 16, "channels": 3}
    input |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    files.write_json(
        directory / "model.json", trained.to_json("vit_mae", Card(settings, input, ("x", "y")))
    )
    assert trained.open_stage(folder, "finetune/finetune/seed_0").card.class_names == ("x", "y")
    return folder


def test_a_stage_that_is_sound_is_not_blamed_for_a_missing_device(stage, monkeypatch):
    def fail(*_):
        raise RuntimeError("Unable to initialize backend")

    for name in ("devices", "process_index"):
        monkeypatch.setattr(jax, name, fail)
    with pytest.raises(UserError, match=r"^no device: Unable to initialize backend$"):
        trained.open_stage(stage, "finetune/finetune/seed_0")


CARDS = {
    ("family",): ("vit_mea", "'vit_mea'"),
    ("settings", "dim"): ("16", "dim: int is expected; got '16'"),
    ("settings", "depth"): (2**30, "depth: must be at most 4096"),
    ("settings", "heads"): (0, "heads: must be at least 1"),
    ("settings", "image_size"): (20, "must be 16|image_size"),
    ("settings", "patch_size"): (3, "image_size: must be a multiple of"),
    ("settings", "wide"): (1, "'wide'"),
    ("input",): ([], "input is no object"),
    ("input", "kind"): ("sound", "'sound' is none of image, text"),
    ("input", "image_size"): (8, "image_size"),
    ("input", "channels"): (1, "channels"),
    ("input", "mean"): (0.5, "input.mean is no list"),
    ("input", "std"): ([0.5, None, 1], r"input.std\[1\] is no number"),
    ("class_names",): ("xy", "class_names is no list"),
    ("class_names", 0): (1, r"class_names\[0\] is no text"),
}


@pytest.mark.parametrize("path", CARDS)
def test_a_model_with_a_wrong_value(stage, path):
    """Without a digest, as an older version wrote it."""
    value, why = CARDS[path]
    file = stage / "stages/finetune/finetune/seed_0/model.json"
    whole = file.read_text()
    file.write_text(json.dumps(changed(path, value, json.loads(whole))))
    try:
        told = refused(why, trained.open_classifier, stage, "finetune/finetune/seed_0", "x")
    finally:
        file.write_text(whole)
    assert told.startswith(f"{file}: ")
    assert "delete it and run the same training command once more" in told


@pytest.mark.parametrize(
    ("path", "value"),
    [(("settings", "mlp_dim"), 31), (("settings", "depth"), 3), (("class_names",), ["x"] * 3)],
)
def test_a_model_that_is_not_that_of_its_parameters(stage, path, value):
    file = stage / "stages/finetune/finetune/seed_0/model.json"
    whole = file.read_text()
    file.write_text(json.dumps(changed(path, value, json.loads(whole))))
    try:
        refused(
            f"^{file}: .* has shape ",
            trained.open_classifier,
            stage,
            "finetune/finetune/seed_0",
            "x",
        )
    finally:
        file.write_text(whole)


def test_a_model_that_is_not_what_was_written(stage):
    """Classes in another order would be other predictions."""
    name = "finetune/finetune/seed_0"
    file = stage / "stages" / name / "model.json"
    whole = file.read_text()
    content = json.dumps(sealed.seal(json.loads(whole)))
    try:
        file.write_text(content)
        assert trained.open_stage(stage, name).card.class_names == ("x", "y")
        for path, value in ((("class_names",), ["y", "x"]), (("settings", "heads"), 1)):
            file.write_text(json.dumps(changed(path, value, json.loads(content))))
            told = refused("damaged: not what was written", trained.open_stage, stage, name)
            assert told.startswith(f"{file}: ")
    finally:
        file.write_text(whole)


def test_an_evaluation_that_is_not_what_was_measured(tmp_path, monkeypatch, capsys):
    before = evaluated(tmp_path, monkeypatch)
    path = tmp_path / "evaluation.json"
    path.write_text(path.read_text().replace('"accuracy": ', '"accuracy": 9'))
    assert evaluated(tmp_path, monkeypatch) == before
    assert f"{path}: damaged: not what was written; it is meas" in capsys.readouterr().out


@pytest.mark.parametrize("name", evaluation.LEFT)
def test_predictions_that_are_gone_are_made_again(tmp_path, monkeypatch, name):
    before = evaluated(tmp_path, monkeypatch)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    assert evaluated(tmp_path, monkeypatch) == before
    assert (tmp_path / name).read_bytes() == whole


@pytest.mark.parametrize("damage", ["zeros", "cut short", "a list", "other classes"])
def test_a_damaged_model_is_told_and_written_again(tmp_path, capsys, damage):
    """By the same training command, which needs nothing of it."""
    file = tmp_path / "stages/s/model.json"
    card = {"family": "f", "settings": {}, "input": {"kind": "image"}, "class_names": ["x"]}
    make = lambda directory: ({"a": np.ones(2, np.float32)}, {})
    kept.keep(tmp_path, "s", {"seed": 0}, card, make)
    whole = file.read_bytes()
    other = whole.replace(b'"x"', b'"z"')
    file.write_bytes(BYTES.get(damage, other))
    kept.keep(tmp_path, "s", {"seed": 0}, card, make)
    assert file.read_bytes() == whole
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"warning: {file}: ")
    assert told[0].endswith("it is written again")


@pytest.mark.parametrize("damage", BYTES)
@pytest.mark.parametrize("name", ["finetune/finetune/seed_0/mistakes.json", "init/identity.json"])
def test_a_page_of_damaged_files(tmp_path, name, damage):
    saved(tmp_path, FOUND | {"init": {"kind": "scratch"}})
    file = tmp_path / "stages" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(BYTES[damage])
    if (name, damage) == ("finetune/finetune/seed_0/mistakes.json", "a list"):
        assert document.html(tmp_path)  # of no mistakes
    else:
        told = refused("not readable as JSON|damaged: ", document.html, tmp_path)
        assert told.startswith(f"{file}: ")


@pytest.mark.parametrize("key", ["image", "text"])
def test_a_page_of_a_mistake_that_is_no_text(tmp_path, key):
    saved(tmp_path, FOUND)
    file = tmp_path / "stages/finetune/finetune/seed_0/mistakes.json"
    file.parent.mkdir(parents=True)
    mistake = {"id": "a", "label": "x", "predicted": "y", "probability": 0.5, key: True}
    file.write_text(json.dumps([mistake]))
    refused(rf"{file}: damaged: \[0\].{key} is no text", document.html, tmp_path)


# --- real processes


def process(*arguments):
    """The one line with which a command ends."""
    command = [sys.executable, "-m", *map(str, arguments)]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.splitlines()
    return line


def test_a_run(tmp_path):
    """Exit code 2, one line, nothing written."""
    pointer = tmp_path / "model.safetensors"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    given = ["--config.init.kind=weights", f"--config.init.weights={pointer}"]
    line = process("sdfp.main", "--config=tests/tiny_config.py", *given, f"--workdir={tmp_path}/r")
    assert line.startswith(f"sdfp: {pointer}: not a whole safetensors file (a pointer of Git LFS")
    assert not (tmp_path / "r/stages").exists()


@pytest.mark.slow
def test_a_table(tmp_path):
    saved(tmp_path / "w", changed(("results", 0, "value"), "50"))
    line = process("sdfp.table", "--from", tmp_path / "w", "--out", tmp_path / "tables")
    assert line.startswith(f"sdfp: {tmp_path}/w/results.json: damaged: results[0].value is no num")
    assert not (tmp_path / "tables").exists()


def test_shapes_in_words():
    shape = {"a": [int], "b?": {str: (float, type(None))}, "c?": object}
    assert checked.misfit({"a": [1, 2], "b": {"x": None, "y": 0.5}, "c": True, "d": 1}, shape) == ""
    assert checked.misfit({"a": []}, shape) == ""
    for value, told in (
        ({}, "a is missing"),
        ({"a": [True]}, "a[0] is no whole number"),
        ({"a": [1.0]}, "a[0] is no whole number"),
        ({"a": [], "b": {"x": "1"}}, "b.x is no number"),
        ([], "the whole of it is no object"),
    ):
        assert checked.misfit(value, shape) == told
