"""The probe of masked stages: what it measures, what it tells, and that it changes nothing."""

import json
from pathlib import Path

import method_runs
import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from sdfp import checkpoint, config, experiment, logged, report, trained
from sdfp.data import digits, loading
from sdfp.data.interface import Split
from sdfp.models.registry import BACKBONES
from sdfp.train import probe

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
    assert set(probe.scores(np.eye(10), label)) == set(probe.NAMES)


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
    assert probe.scores(*clusters(apart=100)) == {"probe_knn": 100, "probe_linear": 100}
    chance = probe.scores(*clusters(apart=0))
    # Were an example among its own neighbours, k-NN weighted by distance would know it.
    assert all(15 < value < 52 for value in chance.values())


def test_scores_equal_those_of_plain_loops():
    """k-NN and ridge regression in closed form, on the same folds, written out."""
    features, label = clusters(apart=0.5)
    right: dict[str, list] = {"probe_knn": [], "probe_linear": []}
    folds = StratifiedKFold(probe.FOLDS, shuffle=True, random_state=0)
    for taught, held_out in folds.split(features, label):
        one_hot = np.eye(3)[label[taught]]
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        for example in held_out:
            distance = 1 - unit[taught] @ unit[example]
            nearest = np.argsort(distance)[: probe.NEIGHBOURS]
            votes = (one_hot[nearest] / distance[nearest, None]).sum(axis=0)
            right["probe_knn"].append(votes.argmax() == label[example])
        x = features[taught]
        x, y = (x - x.mean(0)) / x.std(0), 2 * one_hot - 1
        best = np.linalg.solve(x.T @ x + probe.RIDGE * len(x) * np.eye(8), x.T @ (y - y.mean(0)))
        z = (features[held_out] - features[taught].mean(0)) / features[taught].std(0)
        right["probe_linear"] += list((z @ best + y.mean(0)).argmax(1) == label[held_out])
    plain = {name: 100 * float(np.mean(hits)) for name, hits in right.items()}
    assert probe.scores(features, label) == pytest.approx(plain)
    assert all(40 < value < 95 for value in plain.values())


def curve(knn, linear=None, masked=(), examples=1000):
    """Lines of metrics.jsonl: probes at 0, 10, ..., the masked loss at 5, 15, ..."""
    lines = []
    for number, value in enumerate(knn):
        found = {"probe_knn": value, "probe_linear": (linear or knn)[number]}
        lines.append({"step": 10 * number, **found, "probe_examples": examples, "probe_seconds": 1})
        lines += [{"step": 10 * number + 5, "masked": loss} for loss in masked[number : number + 1]]
    return lines


IMPROVING = (0.9, 0.6, 0.5, 0.4)


def test_a_fall_while_the_masked_loss_improves_is_told():
    told = probe.warning(curve((30, 40, 35, 31, 32), masked=IMPROVING))
    assert told.startswith(
        "the k-NN accuracy of frozen features was 40.0 % at step 10 and at most 32.0 % in the "
        "last two probes (until step 40), while the masked loss fell from 0.9 to 0.4: the stage "
        "over-fits"
    )
    only_linear = probe.warning(curve((30,) * 4, (30, 40, 33, 31), IMPROVING))
    assert only_linear.startswith("the linear accuracy of frozen features was 40.0 %")
    at_once = probe.warning(curve((40, 35, 30, 30), masked=IMPROVING))
    assert "40.0 % at step 0 and" in at_once
    assert "while the masked loss fell from 0.9 to 0.5" in at_once


def test_of_equal_bests_the_last_one_counts():
    told = probe.warning(curve((40, 35, 40, 30, 30), masked=IMPROVING))
    assert "40.0 % at step 20 and" in told


def test_the_masked_loss_is_compared_where_it_is_logged_more_seldom():
    """Steps 25 and 45; probes every 10."""
    probes = curve((40, 40, 40, 30, 30))
    logged = [{"step": step, "masked": loss} for step, loss in ((25, 0.9), (45, 0.5))]
    lines = sorted([*probes, *logged], key=lambda line: line["step"])
    assert probe.warning(lines[:-1]) is None  # one line: nobody knows
    assert "fell from 0.9 to 0.5" in probe.warning(lines)


@pytest.mark.parametrize(
    "lines",
    [
        curve((30, 40, 39, 38, 36), masked=IMPROVING),  # within the error of 1,000 examples
        curve((30, 40, 35, 31, 30), masked=IMPROVING, examples=50),
        curve((30, 40, 31, 40), masked=IMPROVING),  # recovered
        curve((30, 40, 40, 31), masked=IMPROVING),  # once: it may be chance
        curve((30, 40, 35, 31, 31), masked=(0.5, 0.6, 0.9, 1)),  # diverges: another trouble
        curve((30, 40, 35, 31, 31), masked=(0.5, 0.5, 0.499, 0.498)),  # nothing is learnt
        curve((30, 40, 35, 31, 31)),  # no masked loss in this stage
        curve((40, 30)),
        [],
    ],
)
def test_nothing_is_told_of_anything_else(lines):
    assert probe.warning(lines) is None


def test_the_record_has_the_curve():
    lines = curve((30, 40, 32, 31), (50, 50, 51, 52), IMPROVING)
    assert probe.summary(lines) == {
        "probe": [[0, 30, 50], [10, 40, 50], [20, 32, 51], [30, 31, 52]],
        "probe_seconds": 4,
        "warning": probe.warning(lines),
    }
    assert "warning" not in probe.summary(curve((30, 40)))
    assert probe.summary([{"step": 1, "masked": 1.0}]) == {}


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
    assert {name: last[name] for name in expected} == pytest.approx(expected)


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


WHOLE = {"step": 8, "probe_knn": 30.0, "probe_linear": 40.0, "probe_seconds": 1.0}


@pytest.mark.parametrize(
    "damage",
    [
        ("probe_linear", "probe_linuar"),
        ("probe_knn", "qrobe_knn"),
        ("probe_seconds", "probe_secomds"),
        ("30.0", "930.0"),
        ("40.0", "-40.0"),
        ("30.0", "NaN"),
        ("30.0", "true"),
        ("30.0", '"30.0"'),
        (" 1.0", " 1e999"),
        (" 1.0", " 1" + 400 * "0"),
        ("1000", "0"),
        ("step", "stop"),
        ("8", "NaN"),
    ],
)
def test_a_damaged_probe_is_left_out(tmp_path, damage):
    """A disk may change any byte: what only tells of a stage must not fail it."""
    texts = [json.dumps(line) for line in curve((30, 40, 35, 31), masked=IMPROVING)]
    spoilt = json.dumps({**WHOLE, "probe_examples": 1000}).replace(*damage)
    (tmp_path / logged.NAME).write_text("\n".join([spoilt, *texts]))
    lines = logged.read(tmp_path)
    assert len(lines) == len(texts)
    assert len(probe.summary(lines)["probe"]) == 4
    assert "damaged lines, which are left out: 1: " in logged.lacking(tmp_path, 0)


def test_a_probe_of_nobody_knows_how_many_examples():
    """Of an earlier version: nothing is told of it."""
    lines = curve((90, 80, 10, 10), masked=IMPROVING)
    assert probe.warning(lines)
    for line in lines:
        line.pop("probe_examples", None)
    assert len(probe.summary(lines)["probe"]) == 4
    assert "warning" not in probe.summary(lines)


def test_half_a_line_is_not_read(tmp_path):
    (tmp_path / logged.NAME).write_text('{"step": 1, "masked": 2.0}\n{"step": 2, "mas')
    assert logged.read(tmp_path) == [{"step": 1, "masked": 2.0}]
    assert logged.read(tmp_path / "nowhere") == []
