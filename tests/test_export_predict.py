"""`sdfp.export` and `sdfp.predict` on a real run, as their user calls them."""

import csv
import json
import shutil

import numpy as np
import pytest
from data_helpers import write_classes
from PIL import Image

from configs import vit_folder
from sdfp import experiment, export, predict, trained
from sdfp.types import UserError

STAGE = "finetune/further_pretrain/seed_0"
CLASSES = ("ill", "well", 'z,"q" ü')


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, data folder) of a tiny run on three classes of image files."""
    home = tmp_path_factory.mktemp("run")
    data = home / "data"
    write_classes(data / "train", dict.fromkeys(CLASSES, 4))
    write_classes(data / "test", dict.fromkeys(CLASSES, 3), first=100)
    config = vit_folder.get_config("smoke")
    config.methods = ("finetune", "further_pretrain")
    config.data.update({"dir": str(data), "cache_dir": ""})
    config.run.update({"tensorboard": False, "pictures": 0, "probe_every": 0})
    # Steps large enough that the classes' probabilities differ.
    config.stages.finetune.update({"steps": 20, "learning_rate": 1e-2})
    experiment.run(config, home / "work")
    return home / "work", data


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Folders by stage."""
    home = tmp_path_factory.mktemp("exported")
    folders = {"init": home / "init", "further_pretrain": home / "fpt", STAGE: home / "classifier"}
    for stage, folder in folders.items():
        assert export.main([f"--workdir={run[0]}", f"--stage={stage}", f"--out={folder}"]) == 0
    return folders


def predicted(out, *arguments):
    assert predict.main([*map(str, arguments), f"--out={out}"]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fails(capsys, main, *arguments):
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sdfp: ")
    assert error.count("\n") == 1
    return error


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- predict


@pytest.mark.parametrize("kind", ["workdir", "stage", "exported"])
def test_predictions_are_those_of_the_run(run, exported, tmp_path, kind):
    workdir, data = run
    model = {
        "workdir": [f"--model={workdir}"],
        "stage": [f"--model={workdir}", f"--stage={STAGE}"],
        "exported": [f"--model={exported[STAGE]}"],
    }[kind]
    rows = predicted(tmp_path / "p.csv", *model, f"--input={data / 'test'}", "--batch_size=2")
    with (workdir / "stages" / STAGE / "predictions.csv").open(newline="") as file:
        expected = {row["id"]: row for row in csv.DictReader(file)}
    assert {f"test/{row['path']}" for row in rows} == set(expected)
    for row in rows:
        known = expected[f"test/{row['path']}"]
        assert row["predicted"] == known["predicted"]
        assert float(row["probability"]) == pytest.approx(float(known["probability"]), abs=2e-6)
        every = [float(row[f"p({name})"]) for name in CLASSES]
        assert sum(every) == pytest.approx(1, abs=1e-5)
        assert CLASSES[int(np.argmax(every))] == row["predicted"]
    assert len({row["probability"] for row in rows}) > 3


def test_a_csv_and_a_single_image(run, tmp_path):
    workdir, data = run
    names = ["ill/001.png", "well/000.png"]
    listed = data / "test" / "list.csv"
    listed.write_text("more,path\n" + "".join(f"x,{name}\n" for name in names))
    try:
        rows = predicted(tmp_path / "p.csv", f"--model={workdir}", f"--input={listed}")
    finally:
        listed.unlink()
    assert [row["path"] for row in rows] == names
    one = predicted(
        tmp_path / "one.csv", f"--model={workdir}", f"--input={data / 'test' / names[1]}"
    )
    assert one[0]["path"] == "000.png"
    assert one[0]["probability"] == rows[1]["probability"]


def test_broken_files_are_listed_and_left_out(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 1)
    folder = tmp_path / "in"
    write_classes(folder, {"a": 3})
    (folder / "a" / "empty.jpg").touch()
    (folder / "html.png").write_text("<html>")
    cut = (folder / "a" / "000.png").read_bytes()[:45]
    (folder / "cut.png").write_bytes(cut)
    (folder / "b").mkdir()
    for name in "xy":  # a whole batch of broken files
        (folder / "b" / f"{name}.jpg").touch()
    rows = predicted(tmp_path / "p.csv", f"--model={run[0]}", f"--input={folder}", "--batch_size=2")
    assert [row["path"] for row in rows] == ["a/000.png", "a/001.png", "a/002.png"]
    told = capsys.readouterr().out
    for name in (
        "a/empty.jpg: an empty file",
        "html.png: not an image in one of",
        "cut.png: ",
        "b/y.jpg",
    ):
        assert f"left out {name}" in told
    assert "predicted 3, left out 5" in told


def test_mistakes_with_predict(run, exported, tmp_path, capsys):
    workdir, data = run
    picture = data / "test" / "ill" / "000.png"
    good = {"--model": workdir, "--input": picture, "--out": tmp_path / "p.csv"}

    def mistake(**changes):
        given = good | {f"--{key}": value for key, value in changes.items()}
        return fails(capsys, predict.main, *(f"{k}={v}" for k, v in given.items()))

    (tmp_path / "empty").mkdir()
    (tmp_path / "no_column.csv").write_text("file\na.png\n")
    (tmp_path / "no_row.csv").write_text("path\n")
    (tmp_path / "all_missing.csv").write_text("path\nmissing.png\n")
    (tmp_path / "text.jpg").write_text("text")
    assert "neither a work directory" in mistake(model=tmp_path)
    assert "no classifier head" in mistake(model=exported["init"])
    assert "no classifier head" in mistake(stage="further_pretrain")
    assert "no finished stage 'finetune/x'; finished are: finetune/" in mistake(stage="finetune/x")
    assert "no finished stage '../stages/" in mistake(stage=f"../stages/{STAGE}")
    assert "holds no predictions" in mistake(out=exported[STAGE] / "config.json")
    assert "--stage is for work directories" in mistake(model=exported[STAGE], stage=STAGE)
    assert "no such file" in mistake(input=tmp_path / "nothing")
    assert "no image in it" in mistake(input=tmp_path / "empty")
    assert "no column 'path'" in mistake(input=tmp_path / "no_column.csv")
    assert "no row below" in mistake(input=tmp_path / "no_row.csv")
    assert "none of the 1 images" in mistake(input=tmp_path / "all_missing.csv")
    assert "none of the 1 images" in mistake(input=tmp_path / "text.jpg")
    assert "there is no folder" in mistake(out=tmp_path / "missing" / "p.csv")
    assert "is a folder" in mistake(out=tmp_path / "empty")
    assert "is there, and holds no predictions" in mistake(out=picture)
    assert "cannot be read" in mistake(input=tmp_path / ("n" * 300))
    assert "at least 1" in mistake(batch_size=0)
    assert not list(tmp_path.glob("p.csv*"))


# --- export


def test_export_import_export_gives_the_same_bytes(exported, run, tmp_path):
    """Imported the way its user would: as config.init.weights of another run."""
    config = vit_folder.get_config("smoke")
    config.methods = ("finetune",)
    config.seeds = (0,)
    config.data.update({"dir": str(run[1]), "cache_dir": ""})
    config.init.update({"kind": "weights", "weights": str(exported["further_pretrain"])})
    config.stages.finetune.steps = 1
    config.run.tensorboard = False
    experiment.run(config, tmp_path / "work")
    again = tmp_path / "again"
    assert export.main([f"--workdir={tmp_path / 'work'}", "--stage=init", f"--out={again}"]) == 0
    assert contents(again) == contents(exported["further_pretrain"])


def test_a_classifier_opens_as_it_was(exported, run):
    folder, stage = trained.open_folder(exported[STAGE]), trained.open_stage(run[0], STAGE)
    assert folder.card.class_names == stage.card.class_names == CLASSES
    assert folder.card.input == stage.card.input
    for mine, theirs in zip(
        sorted(trained.checkpoint.flatten(folder.params).items()),
        sorted(trained.checkpoint.flatten(stage.params).items()),
        strict=True,
    ):
        assert mine[0] == theirs[0]
        np.testing.assert_array_equal(mine[1], theirs[1])


def test_mistakes_with_export(run, exported, tmp_path, capsys):
    workdir = run[0]

    def mistake(workdir=workdir, stage="init", out=tmp_path / "out"):
        given = (f"--workdir={workdir}", f"--stage={stage}", f"--out={out}")
        return fails(capsys, export.main, *given)

    assert "not a work directory" in mistake(workdir=tmp_path)
    assert "finished are: finetune/" in mistake(stage="nonsense")
    assert "not an empty folder" in mistake(out=exported["init"])
    (tmp_path / "file").touch()
    assert "cannot be written" in mistake(out=tmp_path / "file" / "deep")
    assert not (tmp_path / "out").exists()


def test_a_damaged_stage_is_not_exported(run, tmp_path, capsys):
    shutil.copytree(run[0] / "stages" / "init", tmp_path / "stages" / "init")
    manifest = tmp_path / "stages/init/final/manifest.json"
    content = json.loads(manifest.read_text())
    name = next(iter(content["arrays"]))
    content["arrays"][name]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    told = fails(
        capsys, export.main, f"--workdir={tmp_path}", "--stage=init", f"--out={tmp_path / 'o'}"
    )
    assert "not what was saved" in told


def test_a_stage_of_an_older_version_says_what_to_do(run, tmp_path, capsys):
    shutil.copytree(run[0] / "stages" / "init", tmp_path / "stages" / "init")
    given = (f"--workdir={tmp_path}", "--stage=init", f"--out={tmp_path / 'o'}")
    card = tmp_path / "stages/init/model.json"
    card.write_text("{}")
    assert "run the same training command" in fails(capsys, export.main, *given)
    card.unlink()
    assert "run the same training command" in fails(capsys, export.main, *given)


def test_an_export_touches_nothing_beside_it(run, tmp_path):
    (tmp_path / "m.unfinished").mkdir()
    out = tmp_path / "m"
    out.mkdir()
    assert export.main([f"--workdir={run[0]}", "--stage=init", f"--out={out}"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"m", "m.unfinished"}
    assert out.stat().st_mode & 0o777 == (tmp_path / "m.unfinished").stat().st_mode & 0o777


def test_the_number_of_broken_files_compiles_nothing_new(run, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 1)
    folder = tmp_path / "in"
    write_classes(folder, {"a": 9})
    for name in ("000b", "000c", "004b"):  # chunks of 4 with 2, 3 and 4 good ones
        (folder / "a" / f"{name}.png").touch()
    programs = []
    monkeypatch.setattr(
        predict.evaluation.loop,
        "round_up",
        lambda rows, many, old=predict.evaluation.loop.round_up: (
            programs.append(old(rows, many)) or programs[-1]
        ),
    )
    predicted(tmp_path / "p.csv", f"--model={run[0]}", f"--input={folder}", "--batch_size=4")
    assert len(programs) == 3
    assert len(set(programs)) == 1


def test_non_finite_predictions_are_refused(exported, run, tmp_path, capsys):
    model = trained.open_classifier(exported[STAGE], "", "--model")
    model.params["head"]["bias"] = np.full(3, np.nan, np.float32)
    listed = predict.list_images(run[1] / "test")
    with pytest.raises(UserError, match="not finite"):
        predict.write(model, listed, tmp_path / "p.csv", 4)
    assert not list(tmp_path.iterdir())


def test_folders_of_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model_type is 'bert', which is none of vit_mae, vit"):
        trained.open_folder(tmp_path)
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(UserError, match="not readable as JSON"):
        trained.open_folder(tmp_path)


@pytest.mark.torch
def test_transformers_sees_what_predict_sees(run, exported, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    data = run[1]
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        exported[STAGE], output_loading_info=True
    )
    assert not any(info.values())
    processor = transformers.AutoImageProcessor.from_pretrained(exported[STAGE], backend="pil")
    rows = predicted(tmp_path / "p.csv", f"--model={exported[STAGE]}", f"--input={data / 'test'}")
    for row in rows:
        with Image.open(data / "test" / row["path"]) as image, torch.no_grad():
            logits = model(**processor(image, return_tensors="pt")).logits[0]
        probability = logits.softmax(0).tolist()
        assert model.config.id2label[int(logits.argmax())] == row["predicted"]
        for name, value in zip(CLASSES, probability, strict=True):
            assert float(row[f"p({name})"]) == pytest.approx(value, abs=1e-5)
