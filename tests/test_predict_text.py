"""`sdfp.predict` for models of texts, on a real run, as its user calls it."""

import csv
import json

import jax
import numpy as np
import page_helpers
import pytest
from data_helpers import write_classes
from text_helpers import write, write_jsonl

from configs import roberta_file
from sdfp import experiment, export, predict, trained
from sdfp.data import inputs, tokenizer
from sdfp.data.text_files import Document
from sdfp.page import document

STAGE = "finetune/finetune/seed_0"
CLASSES = ("bad", 'good, "really"', "ü")
WORDS = ("dull", "bright", "grün")
LONG = "so it goes on, and on, and on; "


def example(number):
    """(text, label); every seventh is too long, and commas and quotes are text."""
    kind = number % len(CLASSES)
    tail = LONG * 9 if number % 7 == 3 else ', said "he"' * (number % 4)
    return f"{WORDS[kind]} film {number}{tail}", CLASSES[kind]


TEST = [example(number) for number in range(40, 57)]
TOO_LONG = "2 of 17 new texts are longer than max_length=64 tokens and lose their end"


def write_csv(file, rows, delimiter=","):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, delimiter=delimiter).writerows(rows)
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, data folder) of a tiny run on three classes of texts."""
    home = tmp_path_factory.mktemp("run")
    data = home / "data"
    write_csv(data / "train.csv", [("text", "label"), *(example(n) for n in range(30))])
    write_csv(data / "test.csv", [("label", "text"), *((label, text) for text, label in TEST)])
    config = roberta_file.get_config("smoke")
    config.methods, config.seeds = ("finetune",), (0,)
    config.data.dir, config.data.max_length = str(data), 64
    config.run.update({"tensorboard": False, "pictures": 1, "probe_every": 0})
    # Steps large enough that the classes' probabilities differ.
    config.stages.finetune.update({"steps": 20, "warmup_steps": 0, "learning_rate": 1e-2})
    experiment.run(config, home / "work")
    return home / "work", data


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "classifier"
    assert export.main([f"--workdir={run[0]}", f"--stage={STAGE}", f"--out={folder}"]) == 0
    return folder


def inputs_of(folder):
    """The test texts by suffix; their ids are those of test.csv."""
    return {
        "csv": write_csv(
            folder / "test.csv", [("n", "text"), *((n, text) for n, (text, _) in enumerate(TEST))]
        ),
        # No quotes there: a text stands as it is.
        "tsv": write(folder / "test.tsv", "text\tn\n" + "".join(f"{t}\t1\n" for t, _ in TEST)),
        "jsonl": write_jsonl(folder / "test.JSONL", TEST, more=[1]),
        "txt": write(folder / "test.txt", "".join(f"{text}\r\n" for text, _ in TEST)),
    }


def predicted(out, *arguments):
    assert predict.main([*map(str, arguments), f"--out={out}"]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fails(capsys, *arguments):
    assert predict.main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sdfp: ")
    assert error.count("\n") == 1
    return error


def assert_as_in_the_run(rows, workdir):
    with (workdir / "stages" / STAGE / "predictions.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"test/{n}" for n in range(len(TEST))]
    assert [row["id"] for row in rows] == [known["id"] for known in expected]
    for row, known in zip(rows, expected, strict=True):
        assert row["predicted"] == known["predicted"]
        # Both are rounded to 6 places.
        assert float(row["probability"]) == pytest.approx(float(known["probability"]), abs=1.1e-6)
        every = [float(row[f"p({name})"]) for name in CLASSES]
        assert sum(every) == pytest.approx(1, abs=1e-5)
        assert CLASSES[int(np.argmax(every))] == row["predicted"]
    assert len({row["probability"] for row in rows}) > 3


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "txt"])
@pytest.mark.parametrize("kind", ["workdir", "exported"])
def test_predictions_are_those_of_the_run(run, exported, tmp_path, capsys, kind, suffix):
    model = exported if kind == "exported" else run[0]
    source = inputs_of(tmp_path)[suffix]
    rows = predicted(tmp_path / "p.csv", f"--model={model}", f"--input={source}")
    assert_as_in_the_run(rows, run[0])
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("model: ")
    assert told[0].endswith(", 3 classes; input: 17 texts")
    assert told[1:] == [TOO_LONG, f"{tmp_path / 'p.csv'}: predicted 17"]


def test_the_labelled_file_itself(run, tmp_path):
    stage = (f"--model={run[0]}", f"--stage={STAGE}")
    rows = predicted(tmp_path / "p.csv", *stage, f"--input={run[1] / 'test.csv'}")
    assert_as_in_the_run(rows, run[0])
    assert list(rows[0]) == ["id", "predicted", "probability", *(f"p({name})" for name in CLASSES)]


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_the_batch_size_changes_nothing(run, tmp_path, monkeypatch, batch_size):
    programs, places = [], predict.inputs.texts.prepare
    traced = lambda batch, key, augment: programs.append(1) or places(batch, key, augment)
    monkeypatch.setattr(predict.inputs.texts, "prepare", traced)
    given = (f"--model={run[0]}", f"--input={run[1] / 'test.csv'}", f"--batch_size={batch_size}")
    assert_as_in_the_run(predicted(tmp_path / "p.csv", *given), run[0])
    assert len(programs) == 1  # for all batches, the last and smaller one too


def test_the_same_input_gives_the_same_bytes(run, tmp_path):
    for name in "ab":
        predicted(tmp_path / name, f"--model={run[0]}", f"--input={run[1] / 'test.csv'}")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_column_and_order(run, tmp_path):
    texts = [text for text, _ in TEST[::-1]]
    table = write_csv(tmp_path / "mine.csv", [("body", "text"), *((text, "-") for text in texts)])
    lines = write(tmp_path / "mine.jsonl", "".join(json.dumps({"body": t}) + "\n" for t in texts))
    plain = write(tmp_path / "mine.txt", "".join(f"{t}\n" for t in texts))
    model = f"--model={run[0]}"
    expected = predicted(tmp_path / "p.csv", model, f"--input={plain}")
    for source in (table, lines):
        given = (model, f"--input={source}", "--text_column=body")
        assert predicted(tmp_path / "p.csv", *given) == expected
    forward = predicted(tmp_path / "q.csv", model, f"--input={run[1] / 'test.csv'}")
    assert [row["id"] for row in expected] == [f"mine/{n}" for n in range(len(TEST))]
    for row, known in zip(expected[::-1], forward, strict=True):
        assert float(row["probability"]) == pytest.approx(float(known["probability"]), abs=1.1e-6)


def test_one_short_text(run, tmp_path, capsys):
    source = write(tmp_path / "one.txt", "bright film")
    (row,) = predicted(tmp_path / "p.csv", f"--model={run[0]}", f"--input={source}")
    assert row["id"] == "one/0"
    assert "max_length" not in capsys.readouterr().out


def test_texts_are_encoded_some_at_a_time(run, monkeypatch):
    model = trained.open_classifier(run[0], "", "--model")
    documents = inputs.list_texts(run[1] / "test.csv", "text")
    whole = inputs.read_texts(documents, model.card.input)
    monkeypatch.setattr(tokenizer, "AT_ONCE", 3)
    parts = inputs.read_texts(documents, model.card.input)
    assert parts.remarks == whole.remarks == [TOO_LONG]
    jax.tree.map(np.testing.assert_array_equal, parts.split.arrays, whole.split.arrays)
    assert whole.split.arrays["tokens"].shape == (len(TEST), 64)


def test_the_bar_counts_every_text(run, tmp_path, monkeypatch):
    bars = []

    class Bar(predict.tqdm):
        def __init__(self, *given, **more):
            super().__init__(*given, **{**more, "disable": False})
            self.seen = []
            bars.append(self)

        def update(self, n=1):
            super().update(n)
            self.seen.append(self.n)

    monkeypatch.setattr(predict, "tqdm", Bar)
    given = (f"--model={run[0]}", f"--input={run[1] / 'test.csv'}", "--batch_size=8")
    predicted(tmp_path / "p.csv", *given)
    assert bars[0].seen == [8, 16, 17, 17]


def test_mistakes(run, tmp_path, capsys):
    pictures = write_classes(tmp_path / "pictures", {"a": 2})
    good = {"--model": run[0], "--input": run[1] / "test.csv", "--out": tmp_path / "p.csv"}

    def mistake(content=None, name="in.csv", **changes):
        if content is not None:
            changes["input"] = write(tmp_path / name, content)
        given = good | {f"--{key}": value for key, value in changes.items()}
        return fails(capsys, *(f"{k}={v}" for k, v in given.items()))

    assert "no such file" in mistake(input=tmp_path / "nothing.txt")
    assert "a folder, and the model takes texts: give one .csv, .tsv," in mistake(input=tmp_path)
    assert "a folder, and the model takes texts" in mistake(input=pictures)
    assert "not a file of texts, and the model takes" in mistake("a", name="in.pdf")
    assert "not a file of texts" in mistake(input=pictures / "a" / "000.png")
    assert "no column 'text'; the columns are body" in mistake("body\na\n")
    assert "no column 'text'; the columns are path" in mistake("path\na.png\n")
    assert "are text; name one with text_column\n" in mistake("text\na\n", text_column="x")
    assert "line 2: no key 'text'" in mistake('{"text": "a"}\n{"body": "a"}', name="in.jsonl")
    assert "line 1: not valid JSON" in mistake("a", name="in.jsonl")
    assert "1 of 3 rows have an empty text: line 2; " in mistake("a\n\nb\n \n", name="in.txt")
    assert "1 of 2 rows have an empty text: line 3" in mistake("text,more\na,b\n,c\n")
    assert "no text in it" in mistake("", name="in.txt")
    assert "no text in it" in mistake("text\n")
    assert "line 2: not UTF-8" in mistake(b"a\n\xff\n", name="in.txt")
    assert "at least 1" in mistake(batch_size=0)
    assert "is there, and holds no predictions" in mistake(out=good["--input"])
    assert "there is no folder" in mistake(out=tmp_path / "missing" / "p.csv")
    assert "no finished stage" in mistake(stage="finetune/x")
    assert "no classifier head" in mistake(stage="init")
    assert not list(tmp_path.glob("*p.csv*"))
    assert not list(tmp_path.glob(".predict-*"))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("in.txt", "a file of texts, and the model takes images: give a folder"),
        ("in.TSV", "a file of texts, and the model takes images"),
        ("in.jsonl", "a file of texts, and the model takes images"),
        ("in.csv", "the model takes images: {}, line 1: no column 'path'; the columns are text"),
    ],
)
def test_texts_for_a_model_of_images(run, tmp_path, capsys, monkeypatch, name, match):
    model = trained.open_classifier(run[0], "", "--model")
    card = model.card._replace(input={"kind": "image"})
    monkeypatch.setattr(trained, "open_classifier", lambda *_: model._replace(card=card))
    source = write(tmp_path / name, "text\na\n")
    given = (f"--model={run[0]}", f"--input={source}", f"--out={tmp_path / 'p.csv'}")
    assert match.format(source) in fails(capsys, *given)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_damaged_tokenizer(exported, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in exported.iterdir():
        write(folder / file.name, file.read_bytes())
    content = json.loads((folder / "tokenizer.json").read_text())
    source = write(tmp_path / "in.txt", "a\n")
    given = (f"--model={folder}", f"--input={source}", f"--out={tmp_path / 'p.csv'}")
    faulty = {**content, "post_processor": None}
    write(folder / "tokenizer.json", json.dumps(faulty))
    assert "the model's tokenizer.json: turns 'a' into" in fails(capsys, *given)
    faulty = {**content, "pre_tokenizer": {"type": "None such"}}
    write(folder / "tokenizer.json", json.dumps(faulty))
    assert "tokenizer.json: not a whole tokenizer.json" in fails(capsys, *given)
    assert not list(tmp_path.glob("*p.csv*"))


# --- report.html


def test_texts_of_the_worst_mistakes(run):
    """They are shown as far as the model reads them."""
    folder = run[0] / "stages" / STAGE
    kept = json.loads((folder / "mistakes.json").read_text())
    with (folder / "predictions.csv").open(newline="") as file:
        wrong = [row for row in csv.DictReader(file) if row["label"] != row["predicted"]]
    assert len(kept) == min(12, len(wrong)) > 0
    found = page_helpers.Page(document.html(run[0]))
    for mistake in kept:
        text, label = TEST[int(mistake["id"].removeprefix("test/"))]
        assert mistake["label"] == label != mistake["predicted"]
        assert text.startswith(mistake["text"][:40])
        assert (text == mistake["text"]) == (LONG not in text)  # the end is not read
        assert " ".join(mistake["text"].split()) in found.shown


def test_a_shown_text_keeps_its_special_tokens(run):
    """They are what the model reads; the two ends and the padding are not of the text."""
    input = json.loads((run[0] / "stages" / STAGE / "model.json").read_text())["input"]
    kind = inputs.KINDS["text"]
    documents = [Document("a", "dull <mask> film", None), Document("b", "x", None)]
    split = kind.read(documents, input).split
    assert kind.show(input, split, [1, 0]) == ["x", "dull<mask> film"]
