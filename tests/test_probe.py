"""The probe of masked stages: what it measures, what it tells, and that it changes nothing."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import method_runs
import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold
from test_probe_lines import curve

from sdfp import checkpoint, config, experiment, logged, preflight, report, rows, trained
from sdfp.data import digits, loading
from sdfp.data.interface import Split
from sdfp.models.registry import BACKBONES
from sdfp.settings import Stages
from sdfp.train import probe, progress, stage
from sdfp.train.stage import Place

CONFIG = Path(__file__).parent / "tiny_config.py"
QUICK = (
    *("--config.init.kind=scratch", "--config.run.pictures=0", "--noconfig.run.tensorboard"),
    *("--config.methods=further_pretrain,finetune", "--config.stages.finetune.steps=2"),
    "--config.run.eval_batch_size=40",
)
MASKED = "stages/further_pretrain"


def labelled(*label):
    ids = tuple(f"image {number}" for number in range(len(label)))
    return Split({"image": np.arange(len(label)), "label": np.array(label, np.int32)}, ids)


def test_the_sample_leaves_out_classes_that_do_not_fill_the_folds():
    train = labelled(*[0] * 5, *[1] * 2, *[2] * 5)
    assert probe.sample(train).ids == tuple(f"image {n}" for n in (*range(5), *range(7, 12)))
    whole = labelled(*[0] * 5, *[1] * 5)
    assert probe.sample(whole) is whole


@pytest.mark.parametrize("label", [[0] * 9, [0, 1] * 4, [0] * 20 + [1] * 2, range(30)])
def test_no_sample_of_too_few(label):
    assert probe.sample(labelled(*label)) is None


def test_no_sample_without_labels():
    assert probe.sample(Split({"image": np.zeros(9)}, tuple("abcdefghi"))) is None


def test_the_smallest_sample_can_be_scored():
    label = np.arange(10) % 3  # 4, 3 and 3
    assert probe.sample(labelled(*label)) is not None
    assert set(probe.scores(np.eye(10), label)) == {*probe.NAMES, *logged.RIGHT.values()}


def test_the_sample_of_a_large_set_is_balanced():
    train = labelled(*np.arange(3 * probe.MOST) % 4)
    taken = probe.sample(train)
    np.testing.assert_array_equal(np.bincount(taken.arrays["label"]), probe.MOST / 4)
    assert len(set(taken.ids)) == probe.MOST
    assert probe.sample(train).ids == taken.ids
    rare = probe.sample(labelled(*[0] * 20_000, *[1] * 20))
    np.testing.assert_array_equal(np.bincount(rare.arrays["label"]), [probe.MOST / 2, 20])


def test_the_sample_of_very_many_classes_has_some_of_them():
    taken = probe.sample(labelled(*np.arange(50_000) % 1000))
    count = np.bincount(taken.arrays["label"])
    np.testing.assert_array_equal(count[count > 0], probe.LEAST)
    assert (count > 0).sum() == probe.MOST / probe.LEAST


def clusters(apart: float, examples: int = 90, classes: int = 3):
    rng = np.random.default_rng(0)
    label = np.arange(examples) % classes
    centres = rng.normal(size=(classes, 8))
    return apart * centres[label] + rng.normal(size=(examples, 8)), label


def test_what_is_told_apart_scores_and_what_is_not_does_not():
    every = dict.fromkeys(logged.RIGHT.values(), "ff" * 11 + "c0")  # of 90
    assert probe.scores(*clusters(apart=100)) == {"probe_knn": 100, "probe_linear": 100} | every
    chance = probe.scores(*clusters(apart=0))
    # Were an example among its own neighbours, k-NN weighted by distance would know it.
    assert all(15 < chance[name] < 52 for name in probe.NAMES)


def test_scores_equal_those_of_plain_loops():
    """k-NN and ridge regression in closed form, on the same folds, written out."""
    features, label = clusters(apart=0.5)
    right = {name: np.zeros(len(label), bool) for name in probe.NAMES}
    folds = StratifiedKFold(probe.FOLDS, shuffle=True, random_state=0)
    for taught, held_out in folds.split(features, label):
        one_hot = np.eye(3)[label[taught]]
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        for example in held_out:
            distance = 1 - unit[taught] @ unit[example]
            nearest = np.argsort(distance)[: probe.NEIGHBOURS]
            votes = (one_hot[nearest] / distance[nearest, None]).sum(axis=0)
            right["probe_knn"][example] = votes.argmax() == label[example]
        x = features[taught]
        x, y = (x - x.mean(0)) / x.std(0), 2 * one_hot - 1
        best = np.linalg.solve(x.T @ x + probe.RIDGE * len(x) * np.eye(8), x.T @ (y - y.mean(0)))
        z = (features[held_out] - features[taught].mean(0)) / features[taught].std(0)
        right["probe_linear"][held_out] = (z @ best + y.mean(0)).argmax(1) == label[held_out]
    found = probe.scores(features, label)
    for name, hits in right.items():
        assert 40 < found[name] < 95
        assert found[name] == pytest.approx(100 * hits.mean())
        packed = np.frombuffer(bytes.fromhex(found[logged.RIGHT[name]]), np.uint8)
        np.testing.assert_array_equal(np.unpackbits(packed, count=len(label)), hits)


def run(workdir, *overrides):
    return experiment.run(config.read(str(CONFIG), (*QUICK, *overrides)), workdir)


def probed(workdir):
    return [line for line in logged.read(workdir / MASKED) if "probe_knn" in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("probe")
    return workdir, run(workdir)


def test_a_stage_is_probed_before_it_between_and_behind_it(finished):
    workdir, results = finished
    assert [line["step"] for line in probed(workdir)] == [0, 3, 6, 8]
    assert all(line["probe_examples"] == 40 for line in probed(workdir))
    assert all(len(line[key]) == 10 for line in probed(workdir) for key in logged.RIGHT.values())
    records = {record["name"]: record for record in results["stages"]}
    assert [point[0] for point in records["further_pretrain"]["probe"]] == [0, 3, 6, 8]
    assert "probe" not in records["finetune/further_pretrain/seed_0"]
    written = json.loads((workdir / "results.json").read_text())
    assert written["stages"] == results["stages"]


def test_it_measures_the_frozen_features_of_the_training_set(finished):
    """The last line, from the kept parameters and the data, without the loops."""
    workdir, _ = finished
    kept = trained.open_stage(workdir, "further_pretrain")
    settings = experiment.parse(config.read(str(CONFIG), QUICK)).data
    data = digits.load(settings)
    batch = {"image": data.train.arrays["image"], "index": np.arange(40)}
    backbone = BACKBONES["vit_mae"].make(kept.card.settings, np.float32)
    features = backbone.features(
        kept.params["encoder"], data.prepare(batch, None, False), None, False
    )
    expected = probe.scores(np.asarray(features, np.float64), data.train.arrays["label"])
    last = probed(workdir)[-1]
    assert {name: last[name] for name in expected} == expected


def test_the_time_of_a_warning_is_not_the_stages(tmp_path, monkeypatch):
    """A clock that jumps ahead while metrics.jsonl is judged."""
    ahead = [0.0]

    def warning(lines):
        ahead[0] += 1e6

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0])
    monkeypatch.setattr(stage, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(probe, "warning", warning)
    found = run(tmp_path)
    record = next(each for each in found["stages"] if each["name"] == "further_pretrain")
    assert ahead[0] >= 3e6
    assert 0 < record["seconds"] < 1e5


def test_it_changes_no_bit_of_the_stage(finished, tmp_path):
    run(tmp_path, "--config.run.probe_every=0")
    assert probed(tmp_path) == []
    digest = lambda workdir: checkpoint.stored_digest(workdir / MASKED / "final")
    assert digest(tmp_path) == digest(finished[0])


def test_a_stage_that_is_read_brings_its_record(finished, capsys):
    workdir, before = finished
    path = workdir / MASKED / logged.NAME
    kept = path.read_text()
    fallen = curve((90, 80, 10, 10), masked=(0.3, 0.2, 0.1), examples=40)
    path.write_text("".join(json.dumps(line) + "\n" for line in fallen))
    results = run(workdir)
    record = next(each for each in results["stages"] if each["name"] == "further_pretrain")
    assert record["warning"].startswith("the k-NN accuracy of frozen features was 90.0 % at")
    said = capsys.readouterr().out
    assert f"warning: further_pretrain: {record['warning']}" in said
    assert said.count(f"warning: {path}: it ends at step 0, and the stage did 8: ") == 1
    path.write_text(kept)
    assert run(workdir)["stages"] == before["stages"]
    assert "warning" not in capsys.readouterr().out


def test_too_few_of_every_class(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probe, "FOLDS", 5)  # of each class there are 4
    found = run(tmp_path)
    assert "data: no probe: too few training examples of each class" in capsys.readouterr().out
    assert all("probe" not in record for record in found["stages"])


@pytest.mark.parametrize(
    ("every", "shortest", "done", "told"),
    [
        (1000, 260, (), "the 260 steps of self_distill_1 to warn of over-fitting; 65 would do"),
        (1000, 260, ("self_distill_1",), "the 600 steps of further_pretrain to warn of"),
        (1000, 260, ("self_distill_1", "further_pretrain"), ""),
        (174, 260, (), "the 260 steps of self_distill_1"),  # the end is 86 behind 174
        (173, 260, (), ""),
        (0, 260, (), ""),
    ],
)
def test_too_few_probes_are_told_before_training(tmp_path, capsys, every, shortest, done, told):
    settings = experiment.parse(config.read(str(CONFIG)))
    stages = {"further_pretrain": 600, "self_distill": shortest, "finetune": 1, "pretrain": 2000}
    recipes = {name: replace(getattr(settings.stages, name), steps=n) for name, n in stages.items()}
    settings = replace(settings, stages=Stages(**recipes))
    planned = rows.plan(settings, rows.expand(settings, {}), 1)
    for name in done:
        (tmp_path / "stages" / name / "final").mkdir(parents=True)
    place = Place(tmp_path, None, replace(settings.run, probe_every=every))
    train = labelled(*[0, 1] * 20)
    target = preflight.Source(SimpleNamespace(train=train), {"train": "the feed"})
    feeds = preflight.with_probe(target, place, planned).feeds
    assert feeds.get("probe") == ("the feed" if every else None)
    said = capsys.readouterr().out
    assert told in said
    assert said.count("\n") == bool(told)
    assert said.startswith(f"warning: config.run.probe_every={every} gives too few" if told else "")


@pytest.mark.slow
def test_texts_are_probed_too(tmp_path, monkeypatch):
    data = method_runs.write_data("roberta", tmp_path / "data")
    made = method_runs.tiny("roberta", data, "further_pretrain", steps=2)
    made.run.probe_every = 1
    seen = []
    real = probe.scores
    monkeypatch.setattr(probe, "scores", lambda x, y: seen.append((x, y)) or real(x, y))
    method_runs.run(made, tmp_path)
    assert [line["step"] for line in probed(tmp_path)] == [0, 1, 2]
    (features, label), *_ = seen
    assert features.shape == (method_runs.TRAIN, 16)
    assert np.ptp(features, axis=0).min() > 0
    assert len(label) == method_runs.TRAIN


def test_features_that_are_not_finite_stop_nothing(tmp_path, monkeypatch, capsys):
    broken = lambda *_, **__: np.full((40, 16), np.nan, np.float32)
    monkeypatch.setattr(probe.loop, "map_examples", broken)
    features = {"feed": None, "backbone": None, "prepare": None, "devices": None, "rows": 1}
    split = labelled(*np.arange(40) % 4)
    features["feed"] = loading.on_host(split)
    monkeypatch.setattr(probe.algorithm, "teacher_features", lambda *_: None)
    found = probe.measure({"encoder": None}, **features)
    assert found.keys() == {"probe_examples", "probe_seconds"}
    with report.StageLog(tmp_path, "stage", 10, 0, 1, None) as log:
        assert log.probe(3, found) == found["probe_seconds"]
    assert "stage 3/10  probe: the features are not finite" in capsys.readouterr().out
    assert probe.summary(logged.read(tmp_path)) == {}


def test_a_stage_that_begins_anew_is_probed_once_at_its_start(tmp_path):
    """Killed before its first checkpoint."""
    for _ in range(2):
        with report.StageLog(tmp_path, "stage", 10, 0, 1, None) as log:
            log.probe(0, {"probe_knn": 1.0, "probe_linear": 2.0, "probe_seconds": 0.1})
    assert len(logged.read(tmp_path)) == 1
