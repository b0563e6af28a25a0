"""`python -m sdfp.figure`: numbers, pictures and mistakes, from results.json made here."""

import csv
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from comparison_results import results, saved, scores
from PIL import Image

from sdfp import figure

FURTHER, DISTILLED, X2 = "further_pretrain", "self_distillation", "further_pretrain_x2"
BASE = {"finetune": (50.0, 54.0), FURTHER: (60.0, 61.0, 65.0), DISTILLED: (70.0, 73.0)}


def run(folder, rows=BASE, *, steps=100, labels=40, rounds=1, metric="accuracy", split="test"):
    """A work directory with these scores of these rows."""
    entries = []
    for method, values in rows.items():
        pretrains = FURTHER in method or DISTILLED in method
        first = [X2 if X2 in method else FURTHER] if pretrains else []
        made = scores(method, *values, pretrain_seed=0 if pretrains else None, metric=metric)
        told = lambda number: {"split": split, f"{split}_loss": 5.0 + number**2}
        for number, entry in enumerate(made):
            entries.append(entry | told(number) | {"stages": [*first, entry["stage"]]})
    trained = [{"name": FURTHER, "steps": steps}, {"name": X2, "steps": 2 * steps}]
    data = {"counts": {"train": labels}, "held_out": {split: "ab"}}
    found = results(entries, data=data, stages=trained)
    found["config"] |= {
        "evaluate_on": split,
        "data": {"name": "digits", "train_labels": labels},
        "stages": {FURTHER: {"steps": steps}, "finetune": {"steps": 7}},
        "method": {DISTILLED: {"rounds": rounds}},
    }
    return saved(folder, found), found


def shifted(by):
    return {method: [value + by for value in values] for method, values in BASE.items()}


def make(number, out, *workdirs):
    return figure.main([str(number), "--workdir", *map(str, workdirs), "--out", str(out)])


def rows(out, number):
    with (out / f"figure{number}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(found, panel=""):
    """(series, x) -> (mean, std), of one panel."""
    return {
        (row["series"], row["x"]): (float(row["mean"]), float(row["std"]))
        for row in found
        if row["panel"] == panel
    }


def expected(values):
    return pytest.approx((np.mean(values), np.std(values, ddof=1)), rel=1e-12)


def colours(path, box=(0, 0, 1, 1)):
    """The drawn (not grey) pixels of a part of a picture, as colours."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    left, top, right, bottom = box
    part = pixels[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
    vivid = part[np.ptp(part, axis=2) > 60]
    return {tuple(colour) for colour in vivid}


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


BLUE, ORANGE, GREEN = (rgb(figure.drawing.COLOURS[i]) for i in (0, 1, 2))


@pytest.fixture
def undrawn(monkeypatch):
    """The numbers only: another test looks at this figure's pictures, or writes them."""
    monkeypatch.setattr(figure.drawing, "METADATA", {})


@pytest.mark.usefixtures("undrawn")
def test_steps(tmp_path, capsys):
    a, _ = run(tmp_path / "a", steps=5000)
    b, _ = run(tmp_path / "b", shifted(-3.0), steps=200)
    assert make(1, tmp_path / "out", a, b) == 0
    found = rows(tmp_path / "out", 1)
    assert [(row["series"], row["x"], row["workdir"]) for row in found] == [
        ("finetune", "", str(a)),
        (FURTHER, "200", str(b)),
        (FURTHER, "5000", str(a)),
        (DISTILLED, "200", str(b)),
        (DISTILLED, "5000", str(a)),
    ]
    points = numbers(found)
    assert points["finetune", ""] == expected(BASE["finetune"])
    assert points[FURTHER, "200"] == expected([57.0, 58.0, 62.0])
    assert points[FURTHER, "5000"] == expected(BASE[FURTHER])
    assert [row["n"] for row in found] == ["2", "3", "3", "2", "2"]
    assert {row["measure"] for row in found} == {"accuracy"}
    said = capsys.readouterr().out
    assert "Mean over 2 to 3 fine-tuning seeds" in said
    assert f"finetune is that of {a}; {b} has another." in said  # they are not from one code


@pytest.mark.usefixtures("undrawn")
def test_twice_the_steps(tmp_path):
    """further_pretrain_x2 of N steps is further_pretrain of 2 N, to the last bit."""
    made = [run(tmp_path / str(n), BASE | {X2: (60.0, 62.0)}, steps=n)[0] for n in (15, 30)]
    assert make(1, tmp_path / "out", *made) == 0
    places = {name: [] for name in (FURTHER, X2, DISTILLED)}
    for row in rows(tmp_path / "out", 1)[1:]:
        places[row["series"]].append(row["x"])
    assert places == {FURTHER: ["15", "30"], X2: ["30", "60"], DISTILLED: ["15", "30"]}


@pytest.mark.usefixtures("undrawn")
def test_spread(tmp_path, capsys):
    """The runs, and of them the rows, that repeat pre-training are named."""
    one = "seeds of one pre-trained checkpoint per point; the variance of the pre-training stages"
    a, b = (run(tmp_path / str(n), steps=n)[0] for n in (1, 2))
    assert make(1, tmp_path / "out", a, b) == 0
    assert f"(n − 1) over the fine-tuning {one} is not in it.\n" in capsys.readouterr().out
    again = BASE | {FURTHER: (60.0, 61.0, 65.0, 60.0, 62.0, 64.0)}
    b, found = run(b, again, steps=2)
    for number, entry in enumerate(e for e in found["results"] if e["method"] == FURTHER):
        entry |= {"pretrain_seed": number // 3, "seed": number % 3}
    saved(b, found)
    assert make(1, tmp_path / "out", a, b) == 0
    told = f"is not in it, except for {FURTHER} of {b} (2 pre-training seeds).\n"
    assert f"{one} {told}" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_runs_of_other_machines(tmp_path, capsys):
    """Precision, device and versions are no part of a config; their number of devices is none."""
    made = []
    for steps, device, precision, jax in (
        *((1, "1 x cpu", "float32", "0.10"), (2, "8 x cpu", "float32", "0.10")),
        *((3, "1 x H200", "tf32", "0.11"), (4, "", "", "")),
    ):
        folder, found = run(tmp_path / str(steps), steps=steps)
        found |= {"device": device, "precision": precision, "versions": {"jax": jax, "numpy": "2"}}
        if not device:  # an older run
            del found["device"], found["precision"], found["versions"]
        made.append(saved(folder, found))
    assert make(1, tmp_path / "out", *made[:2]) == 0
    assert "differ" not in capsys.readouterr().out
    assert make(1, tmp_path / "out", *made) == 0
    one, two, three, _ = made
    assert (
        f"the runs also differ in precision: float32 ({one}, {two}), tf32 ({three}); "
        f"device: cpu ({one}, {two}), H200 ({three}); jax: 0.10 ({one}, {two}), 0.11 ({three}).\n"
    ) in capsys.readouterr().out


def test_labels(tmp_path):
    """Plain fine-tuning depends on them, too; the headline metric is that of the data set."""
    made = [
        run(tmp_path / str(n), shifted(n / 10), labels=n, metric="macro_f1", split="validation")[0]
        for n in (100, 25)
    ]
    assert make(3, tmp_path / "out", *made) == 0
    found = rows(tmp_path / "out", 3)
    points = numbers(found)
    assert list(points) == [(method, x) for method in BASE for x in ("25", "100")]
    for (method, x), point in points.items():
        assert point == expected([value + int(x) / 10 for value in BASE[method]])
    assert {row["measure"] for row in found} == {"macro_f1"}
    assert b"validation macro-F1 (%)" in (tmp_path / "out" / "figure3.svg").read_bytes()


def test_rounds(tmp_path, capsys):
    """Round 0 is further pre-training, once; rows that are joined have a line of their own."""
    joined = {f"{FURTHER}+mars": (1.0, 2.0), f"{DISTILLED}+mars": (3.0, 5.0), "mars": (9.0,)}
    a, _ = run(tmp_path / "a", BASE | joined, rounds=1)
    b, _ = run(tmp_path / "b", BASE | {DISTILLED: (80.0, 84.0)}, rounds=3)
    assert make(4, tmp_path / "out", a, b) == 0
    found = rows(tmp_path / "out", 4)
    points = numbers(found)
    assert points.pop(("finetune", "")) == expected(BASE["finetune"])
    wanted = {
        (DISTILLED, "0"): BASE[FURTHER],
        (DISTILLED, "1"): BASE[DISTILLED],
        (DISTILLED, "3"): (80.0, 84.0),
        (f"{DISTILLED}+mars", "0"): (1.0, 2.0),
        (f"{DISTILLED}+mars", "1"): (3.0, 5.0),
    }
    assert points.keys() == wanted.keys()
    for key, values in wanted.items():
        assert points[key] == expected(values)
    assert [row["method"] for row in found if row["x"] == "0"] == [FURTHER, f"{FURTHER}+mars"]
    assert "has another" not in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_round_0_of_most_seeds(tmp_path):
    """Where a run lacks some cells, another one that has them is taken."""
    less = {"finetune": (50.0,), FURTHER: (60.0, 61.0)}
    a, _ = run(tmp_path / "a", BASE | less, rounds=1)
    b, _ = run(tmp_path / "b", rounds=2)
    assert make(4, tmp_path / "out", a, b) == 0
    places = [(row["x"], row["n"], row["workdir"]) for row in rows(tmp_path / "out", 4)]
    assert places == [("", "2", str(b)), ("0", "3", str(b)), ("1", "2", str(a)), ("2", "2", str(b))]


@pytest.mark.usefixtures("undrawn")
def test_chosen_rounds(tmp_path):
    """--tune changes a row's settings, not the config's."""
    a, found = run(tmp_path / "a")
    for entry in found["results"]:
        if entry["method"] == DISTILLED:
            entry["varied"] = {f"{DISTILLED}.rounds": 2}
    saved(a, found)
    assert make(4, tmp_path / "out", a) == 0
    last = rows(tmp_path / "out", 4)[-1]
    assert (last["x"], last["settings"]) == ("2", "rounds=2")


def test_analysis(tmp_path):
    a, _ = run(tmp_path / "a", rounds=2)
    b, found = run(tmp_path / "b", rounds=1)
    assert make(5, tmp_path / "out", a, b) == 0
    made = rows(tmp_path / "out", 5)
    gaps, by_method, by_round = (numbers(made, panel) for panel in "abc")
    bars = {("finetune", ""): "finetune", (DISTILLED, "0"): FURTHER, (DISTILLED, "1"): DISTILLED}
    assert list(gaps) == list(by_method) == list(bars)
    for key, method in bars.items():
        entries = [entry for entry in found["results"] if entry["method"] == method]
        gap = [entry["test_loss"] - entry["train_loss"] for entry in entries]
        assert gaps[key] == expected(gap)
        assert by_method[key] == expected([entry["distance"] for entry in entries])
    assert list(by_round) == [(DISTILLED, x) for x in "012"]
    assert by_round[DISTILLED, "2"] == expected([70 / 13, 73 / 13])
    for left, right in ((0.0, 0.33), (0.34, 0.66)):  # of the two panels with bars
        part = colours(tmp_path / "out" / "figure5.png", (left, 0.1, right, 0.8))
        assert {BLUE, ORANGE} <= part
    assert BLUE in colours(tmp_path / "out" / "figure5.png", (0.7, 0.1, 1, 0.8))


def test_pictures(tmp_path):
    """Every line is to be seen, and within the axes; the same numbers give the same bytes."""
    a, _ = run(tmp_path / "a$x$", steps=5000)
    b, _ = run(tmp_path / "b", shifted(-3.0), steps=200)
    for out in ("once", "again"):
        assert make(1, tmp_path / out, a, b) == 0
    files = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert files == ["figure1.csv", "figure1.png", "figure1.svg"]
    for name in files:
        data = (tmp_path / "once" / name).read_bytes()
        assert data == (tmp_path / "again" / name).read_bytes()
    drawn = tmp_path / "once" / "figure1.png"
    for half in ((0.1, 0.4, 0.3, 0.8), (0.7, 0.1, 0.98, 0.8)):  # the legend is in neither
        assert {BLUE, ORANGE} <= colours(drawn, half)
    assert GREEN not in colours(drawn)
    svg = (tmp_path / "once" / "figure1.svg").read_text()
    shown = "".join(ElementTree.fromstring(svg).itertext())
    for text in ("test accuracy (%)", "steps of further pre-training", "± 1 standard deviation"):
        assert text in shown
    assert "a$x$" in shown  # a folder's name is no formula


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ((1000, 5000), ["1000", "5000"]),
        ((100, 1000, 10_000), ["100", "1000", "10000"]),
        ((1000, 1040, 5000), ["1200", "1800", "2400", "3000", "3600", "4200", "4800"]),
    ],
)
def test_ticks(tmp_path, labels, shown):
    """Where the runs are, unless two of them would be in one place."""
    made = [run(tmp_path / str(number), labels=number)[0] for number in labels]
    assert make(3, tmp_path, *made) == 0
    texts = ElementTree.parse(tmp_path / "figure3.svg").iter("{http://www.w3.org/2000/svg}text")
    scores_end = 100  # all larger numbers are labels
    found = [text.text for text in texts if text.text and text.text.isdigit()]
    assert [number for number in found if int(number) >= scores_end] == shown


@pytest.mark.usefixtures("undrawn")
def test_notes(tmp_path, capsys):
    a, _ = run(tmp_path / "a", steps=1)
    b, found = run(tmp_path / "b", BASE | {DISTILLED: (1.0,)}, steps=2)
    found["complete"] = False
    found["config"]["stages"]["finetune"]["steps"] = 8
    found["config"]["run"] = {"log_every": 1}
    found["failed"] = [{"method": FURTHER, "seed": 2, "pretrain_seed": 0, "error": "x"}]
    saved(b, found)
    assert make(1, tmp_path / "out", a, b) == 0
    said = capsys.readouterr().out
    assert "the runs also differ in stages.finetune.steps.\n" in said
    assert f"{b} has not been run to its end." in said
    assert f"failed cells of {b}: {FURTHER} 1." in said
    assert "none where there is one value only" in said
    assert rows(tmp_path / "out", 1)[-1]["std"] == ""


def refused(capsys, number, tmp_path, *workdirs):
    assert make(number, tmp_path / "out", *workdirs) == 2
    assert not (tmp_path / "out").exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("sdfp: ")


@pytest.mark.parametrize(
    ("number", "value", "flag"),
    [
        (1, "steps, there is only 100", "--config.stages.further_pretrain.steps=N"),
        (3, "labels, there is only 40", "--config.data.train_labels=N"),
    ],
)
def test_one_value_only(tmp_path, capsys, number, value, flag):
    line = refused(capsys, number, tmp_path, run(tmp_path / "a")[0])
    assert f"two or more values of {value} for each; make more runs with" in line
    command = "python -m sdfp.table --config CONFIG --methods finetune,further_pretrain,"
    assert f"`{command}self_distillation {flag} --workdir W`" in line


@pytest.mark.parametrize("number", [4, 5])
def test_round_0_only(tmp_path, capsys, number):
    """Without self-distillation; and self-distillation without further pre-training."""
    only = {"finetune": (1.0,), FURTHER: (1.0, 2.0)}
    line = refused(capsys, number, tmp_path, run(tmp_path / "a", only)[0])
    assert line.startswith("no row there depends on rounds of self-distillation")
    assert "--config.method.self_distillation.rounds=N --workdir W" in line
    made = [run(tmp_path / str(n), {DISTILLED: (1.0,)}, rounds=n)[0] for n in (1, 2)]
    if number == 5:
        line = refused(capsys, number, tmp_path, *made)
        assert line.startswith("figure 5 compares further_pretrain with self_distillation of one")
    line = refused(capsys, number, tmp_path, made[0])
    assert "two or more values of rounds, there is only 1 for each" in line


def test_nothing_that_further_pretrains(tmp_path, capsys):
    only, _ = run(tmp_path / "a", {"finetune": (1.0,), "mars": (1.0,)})
    line = refused(capsys, 1, tmp_path, only)
    assert line.startswith("no row there depends on steps of further pre-training; make runs")


def test_twice_in_one_place(tmp_path, capsys):
    a, b = (run(tmp_path / name)[0] for name in "ab")
    line = refused(capsys, 3, tmp_path, a, b)
    assert line == f"finetune with labels 40 is in {a} and in {b}: name one of them"
    assert "is named twice" in refused(capsys, 3, tmp_path, a, a)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metric": "macro_f1"}, "its metric is macro_f1, that of {a} is accuracy; "),
        ({"split": "validation"}, "its reported split is validation, that of {a} is test; "),
    ],
)
def test_not_comparable(tmp_path, capsys, change, told):
    a, _ = run(tmp_path / "a", steps=1)
    b, _ = run(tmp_path / "b", steps=2, **change)
    assert refused(capsys, 1, tmp_path, a, b).startswith(f"{b}: {told.format(a=a)}")


def test_other_data(tmp_path, capsys):
    a, _ = run(tmp_path / "a", steps=1)
    b, found = run(tmp_path / "b", steps=2)
    found["data"]["held_out"] = {"test": "cd"}
    saved(b, found)
    line = refused(capsys, 1, tmp_path, a, b)
    assert line.startswith(f"{b}: its held-out data is cd, that of {a} is ab; ")
    found["config"]["data"]["name"] = "dtd"
    saved(b, found)
    line = refused(capsys, 1, tmp_path, a, b)
    assert line.startswith(f"{b}: its data set is dtd, that of {a} is digits; ")


def test_other_mistakes(tmp_path, capsys):
    line = refused(capsys, 1, tmp_path, tmp_path / "none")
    assert "no results.json there" in line
    a, found = run(tmp_path / "a")
    for entry in found["results"]:
        del entry["distance"]
    saved(a, found)
    line = refused(capsys, 5, tmp_path, a)
    assert line.startswith(f"{a}: its results.json has no 'distance'; run its command again")
    for entry in found["results"]:
        entry["stages"] = []
    saved(a, found)
    line = refused(capsys, 1, tmp_path, a)
    assert line.startswith(f"{a}: its results.json has no 'stages'; run its command again")
    failed = [{"method": FURTHER, "seed": None, "pretrain_seed": 0, "error": "x"}]
    saved(a, {**found, "results": [], "failed": failed})
    assert "all of its rows failed" in refused(capsys, 1, tmp_path, a)
    run(tmp_path / "a")
    (tmp_path / "file").write_text("")
    assert make(4, tmp_path / "file", a) == 2
    assert capsys.readouterr().err.startswith(f"sdfp: --out {tmp_path / 'file'}: ")


def test_the_command(tmp_path):
    """The flag can be repeated; there is no figure 2."""
    a, b = (str(run(tmp_path / str(n), labels=n)[0]) for n in (10, 20))
    command = [sys.executable, "-m", "sdfp.figure"]
    rest = ["--workdir", a, "--workdir", b, "--out", str(tmp_path / "out")]
    subprocess.run([*command, "3", *rest], check=True, capture_output=True)
    assert len(rows(tmp_path / "out", 3)) == 6
    done = subprocess.run([*command, "2", *rest], capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid choice: 2" in done.stderr
