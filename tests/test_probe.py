"""The probe of masked stages: what it measures, what it tells, and that it changes nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from configs import docstrings
from sdfp import checkpoint, config, experiment, report, trained
from sdfp.data import digits
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


def test_the_sample_has_the_classes_that_fill_the_folds():
    train = labelled(0, 0, 0, 1, 1, 2, 2, 2, 2)
    assert probe.sample(train).ids == tuple(f"image {number}" for number in (0, 1, 2, 5, 6, 7, 8))
    whole = labelled(*[0] * 3, *[1] * 3)
    assert probe.sample(whole) is whole
    assert probe.sample(labelled(0, 0, 0, 1, 1)) is None
    assert probe.sample(Split({"image": np.zeros(9)}, tuple("abcdefghi"))) is None


def test_the_sample_of_a_large_set_is_stratified():
    train = labelled(*np.arange(3 * probe.MOST) % 4)
    taken = probe.sample(train)
    assert len(set(taken.ids)) == probe.MOST
    np.testing.assert_array_equal(np.bincount(taken.arrays["label"]), probe.MOST / 4)
    assert probe.sample(train).ids == taken.ids


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
        errors, fitted = {}, {}
        for alpha in np.logspace(-1, 4, 6):  # chosen by leaving one out
            hat = x @ np.linalg.solve(x.T @ x + alpha * np.eye(8), x.T) + 1 / len(x)
            left = (y - hat @ y) / (1 - np.diag(hat))[:, None]
            errors[alpha] = np.mean(left**2)
            fitted[alpha] = np.linalg.solve(x.T @ x + alpha * np.eye(8), x.T @ (y - y.mean(0)))
        best = fitted[min(errors, key=errors.get)]
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


IMPROVING = (0.9, 0.6, 0.5)


def test_a_fall_while_the_masked_loss_improves_is_told():
    told = probe.warning(curve((30, 40, 35, 31), masked=IMPROVING))
    assert told.startswith(
        "the k-NN accuracy of frozen features fell from 40.0 % (step 10) to 31.0 % (step 30) "
        "while the masked loss fell from 0.9 to 0.5: over-fitting."
    )
    only_linear = probe.warning(curve((30, 30, 30, 30), (30, 40, 35, 31), IMPROVING))
    assert only_linear.startswith("the linear accuracy of frozen features fell from 40.0 %")
    at_once = probe.warning(curve((40, 35, 30), masked=IMPROVING))
    assert "(step 0) to 30.0 % (step 20) while the masked loss fell from 0.9 to 0.6" in at_once


@pytest.mark.parametrize(
    "lines",
    [
        curve((30, 40, 39, 38), masked=IMPROVING),  # within the error of 1,000 examples
        curve((30, 40, 35, 31), masked=IMPROVING, examples=50),
        curve((30, 40, 31, 40), masked=IMPROVING),  # recovered
        curve((30, 40, 35, 31), masked=(0.5, 0.6, 0.9)),  # diverges: another trouble
        curve((30, 40, 35, 31)),  # no masked loss in this stage
        curve((40,)),
        [],
    ],
)
def test_nothing_is_told_of_anything_else(lines):
    assert probe.warning(lines) is None


def test_the_record_has_the_curve():
    lines = curve((30, 40, 35, 31), (50, 50, 51, 52), IMPROVING)
    assert probe.summary(lines) == {
        "probe": [[0, 30, 50], [10, 40, 50], [20, 35, 51], [30, 31, 52]],
        "probe_seconds": 4,
        "warning": probe.warning(lines),
    }
    assert "warning" not in probe.summary(curve((30, 40)))
    assert probe.summary([{"step": 1, "masked": 1.0}]) == {}


def run(workdir, *overrides):
    return experiment.run(config.read(str(CONFIG), (*QUICK, *overrides)), workdir)


def probed(workdir):
    return [line for line in report.read_metrics(workdir / MASKED) if "probe_knn" in line]


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
    path = workdir / MASKED / report.METRICS
    kept = path.read_text()
    fallen = curve((90, 80, 10), masked=(0.3, 0.2), examples=40)
    path.write_text("".join(json.dumps(line) + "\n" for line in fallen))
    results = run(workdir)
    record = next(each for each in results["stages"] if each["name"] == "further_pretrain")
    assert record["warning"].startswith("the k-NN accuracy of frozen features fell from 90.0 %")
    assert f"warning: further_pretrain: {record['warning']}" in capsys.readouterr().out
    path.write_text(kept)
    assert run(workdir)["stages"] == before["stages"]


def test_too_few_of_every_class(tmp_path, capsys):
    found = run(tmp_path, "--config.data.train_labels=20")
    assert "data: no probe: it takes two classes of 3 training examples" in capsys.readouterr().out
    assert all("probe" not in record for record in found["stages"])


def test_texts_are_probed_too(tmp_path, monkeypatch):
    made = docstrings.get_config("smoke")
    made.methods, made.seeds, made.init.kind = ("further_pretrain",), (0,), "scratch"
    made.data.train_labels = 60
    made.run.update({"pictures": 0, "tensorboard": False, "masked_loss": False})
    seen = []
    real = probe.scores
    monkeypatch.setattr(probe, "scores", lambda x, y: seen.append((x, y)) or real(x, y))
    experiment.run(made, tmp_path)
    assert [line["step"] for line in probed(tmp_path)] == [0, 1, 2]
    (features, label), *_ = seen
    assert features.shape == (60, 32)
    assert np.ptp(features, axis=0).min() > 0
    assert len(label) == 60
