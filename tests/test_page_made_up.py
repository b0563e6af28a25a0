"""report.html of made-up work directories: what is lacking, large, hostile, being written."""

import json
import shutil

import numpy as np
import pytest
from comparison_results import PLAIN, entry, results, saved
from page_helpers import curves, decoded, falling, made, measured, metrics, record
from PIL import Image

from sdfp import report
from sdfp.page import __main__ as command
from sdfp.page import curves as drawing
from sdfp.page import mistakes as judging
from sdfp.page import pictures, stages
from sdfp.train import mistakes

HOSTILE = '</script><img src="http://evil/x.png" onerror=alert(1)> & $x$ \udcff\x1b \u202e 大'


def test_probes_and_their_warning(tmp_path):
    """Probes have lines without a loss, the first before the stage; a warning is told twice."""
    told = {"probe_linear": 80.0, "probe_seconds": 0.1}
    probes = [{"step": s, "probe_knn": 70.0 - s, **told} for s in (0, 10, 20)]
    folder = metrics(tmp_path / "stages/further_pretrain", [*falling(3), *probes])
    warned = record("further_pretrain", warning="the k-NN accuracy <b>fell</b>")
    saved(tmp_path, results(PLAIN, stages=[warned]))
    found = made(tmp_path)
    assert curves(found) == [
        "Training loss of further_pretrain against steps",
        "Accuracy of frozen features of further_pretrain against steps",
    ]
    assert "further_pretrain: the k-NN accuracy <b>fell</b>" in found.shown
    assert found.shown.count("the k-NN accuracy <b>fell</b>") == 2
    assert {"k-NN", "linear"} <= set(found.text)
    assert "#masked-1" in found.refs
    # Without them, and without the curve: a line in the place of each.
    metrics(folder, [])
    found = made(tmp_path)
    assert curves(found) == []
    for told in ("No loss curve", "No probe", "No reconstructions"):
        assert told in found.shown


def test_terms_of_a_loss(tmp_path):
    """Each of several and their sum; one alone is not drawn twice, unless it is weighted."""
    two = [line | {"loss": line["loss"] + 1, "distill": 1.0} for line in falling(4)]
    weighted = [line | {"loss": 2 * line["loss"]} for line in falling(4)]
    for name, lines in (("two", two), ("one", falling(4)), ("weighted", weighted)):
        metrics(tmp_path / "stages" / name, lines)
    drawn = made(tmp_path)
    assert len(curves(drawn)) == 3
    assert [drawn.text.count(name) for name in ("masked", "distill")] == [3, 1]
    assert drawn.text.count("loss (all terms)") == 2


def test_spikes_and_skipped_steps(tmp_path):
    """A thin line where a step's loss was larger than the mean; what was skipped is told on top."""
    peaks = {"loss_max": 5.0, "grad_norm_max": 9.0}
    spiky = [line | peaks | {"skipped": 0} for line in falling(4)]
    metrics(tmp_path / "stages/spiky", [*spiky, {"step": 50, "examples": 8, "skipped": 10}])
    metrics(tmp_path / "stages/smooth", [x | {"loss_max": x["loss"]} for x in falling(4)])
    row = tmp_path / "stages/finetune/finetune/seed_0"
    metrics(row, falling(3, "plain"))
    tuned = record("finetune/finetune/seed_0", skipped=1)
    found = made(saved(tmp_path, results(PLAIN, stages=[tuned])))
    assert found.text.count("loss, largest") == 1
    assert found.text.count("masked") == 2  # in the legend of each
    assert "grad_norm_max" not in found.text
    assert "spiky: 10 steps skipped: not finite" in found.shown
    assert "finetune/finetune/seed_0: 1 step skipped: not finite" in found.shown
    assert "seed 0: steps skipped as not finite: 1" in found.shown
    assert "smooth: " not in found.shown


def test_curves_of_one_page_share_no_ids(tmp_path):
    """Equal ones would clip a curve by the frame of another."""
    for name in ("a", "b"):
        metrics(tmp_path / "stages" / name, falling(5))
    found = made(tmp_path)
    svg = [name for name in found.ids if len(name) == 11]
    assert len(svg) == len(set(svg)) >= 4


def test_every_step_once_and_in_order(tmp_path):
    """Whatever an interrupted stage left behind."""
    lines = [*falling(3), {"step": 20, "loss": 9.0}, {"step": 40, "loss": 1.0}, {"step": 5}]
    metrics(tmp_path / "stages/a", [*lines, {"step": 50, "loss": "x"}])
    (found,) = stages.find(tmp_path, {})
    assert [(line["step"], line["loss"]) for line in found.lines] == [
        (10, 5.0),
        (20, 9.0),
        (30, pytest.approx(5 / 3)),
        (40, 1.0),
    ]
    assert (found.steps, found.row) == (None, None)


def test_long_curves_are_thinned_and_keep_their_extremes(tmp_path):
    values = np.random.default_rng(0).normal(size=100_000)
    values[777], values[88_888] = 50, -50
    kept = drawing.thin(values)
    assert len(kept) <= drawing.MOST
    assert (np.diff(kept) > 0).all()
    assert {0, 777, 88_888, 99_999} <= set(kept.tolist())
    lines = [{"step": i + 1, "loss": 1 + float(v) ** 2} for i, v in enumerate(values[:20_000])]
    metrics(tmp_path / "stages/further_pretrain", lines)
    made(tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 60_000


def test_many_seeds_make_no_large_panel(tmp_path):
    for seed in range(40):
        lines = [{"step": i + 1, "loss": 1 + (seed * i) % 7} for i in range(1000)]
        metrics(tmp_path / f"stages/finetune/finetune/seed_{seed}", lines)
    found = made(tmp_path)
    assert len(curves(found)) == 1
    assert "seed 0" not in found.text  # no legend
    assert (tmp_path / "report.html").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("values", "log"),
    [((1.0, 0.05), True), ((1.0, 0.5), False), ((1.0, 0.0), False), ((2.0, 2.0), False)],
)
def test_scale(values, log):
    """Logarithmic where the loss falls by a factor of ten, and only where it is positive."""
    is_log, low, high = drawing.limits([*values, float("nan"), float("inf")])
    assert is_log == log
    assert low < min(values) <= max(values) < high
    assert drawing.limits([float("nan")]) is None


def test_failed_cells(tmp_path):
    """What failed is told first, with the curve that it left; the other rows are there."""
    folder = tmp_path / "stages/finetune/mars/seed_1"
    lines = [*falling(3, "plain"), {"step": 40, "loss": float("nan"), "plain": float("nan")}]
    metrics(folder, lines)
    (folder / "identity.json").write_text(json.dumps({"recipe.steps": 90}))
    failed = {"method": "mars", "varied": {}, "pretrain_seed": None, "seed": 1, "ours": False}
    told = results(
        [*PLAIN, entry("mars", 0, 40.0)],
        failed=[failed | {"error": "loss is not finite <at> step 40"}],
    )
    found = made(saved(tmp_path, told))
    assert "1 failed cell" in found.shown
    first = found.shown.index("mars, seed 1 failed: loss is not finite <at> step 40")
    assert first < found.shown.index("Δ to finetune")
    assert "seed 1: not finished: step 40 of 90 is logged" in found.shown
    assert curves(found) == ["Training loss of mars against steps, a line per seed"]
    assert found.shown.count("No confusion matrix") == 2


def test_nothing_but_failures(tmp_path):
    failed = {"method": "mars", "varied": {}, "pretrain_seed": None, "seed": None, "ours": True}
    told = results([], ["mars"], failed=[failed | {"error": "x"}], complete=False)
    found = made(saved(tmp_path, told))
    assert "mars failed: x" in found.shown
    assert "The run has not come to its end" in found.shown
    assert "No row has been measured yet." in found.shown


def test_without_labels(tmp_path):
    told = results([], ["further_pretrain"], stages=[record("further_pretrain")])
    found = made(saved(tmp_path, told))
    assert "No row has been measured: " in found.shown
    assert "further_pretrain" in found.shown


def test_hostile_names(tmp_path):
    """Names of classes, files, stages and errors are text, whatever they hold."""
    names = ["ok", HOSTILE, "<!--", "a\nb"]
    folder = tmp_path / "stages/finetune/finetune/seed_0"
    measured(folder, names, count=4)
    metrics(folder, falling(3, HOSTILE))
    metrics(tmp_path / "stages/further_pretrain", [{"step": 1, "loss": 1.0, HOSTILE: 0.5}])
    (tmp_path / "stages/further_pretrain/reconstructions.txt").write_text("</pre><script>x")
    failed = {"method": "mars", "varied": {}, "pretrain_seed": None, "seed": 1, "ours": False}
    told = results(
        PLAIN,
        name=HOSTILE,
        failed=[failed | {"error": HOSTILE}],
        stages=[record("further_pretrain", warning=HOSTILE), record("finetune/finetune/seed_0")],
        data={"remarks": [HOSTILE], "broken": {HOSTILE: HOSTILE}, HOSTILE: {HOSTILE: [HOSTILE]}},
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )
    found = made(saved(tmp_path, told))
    assert "</pre><script>x" in found.shown
    assert found.shown.count("</script><img src=") > 10
    assert "\\udcff" in found.shown


def test_100_classes(tmp_path):
    """A picture in place of the table, and what is confused most in words."""
    names = [f"class {i}" for i in range(100)]
    folder = tmp_path / "stages/finetune/finetune/seed_0"
    matrix = measured(folder, names, count=20)
    matrix[3, 7] = 900
    report.save_confusion(folder / "confusion.csv", matrix, names)
    found = made(saved(tmp_path, results(PLAIN)))
    (image,) = [x for x in found.images() if x["alt"].startswith("Confusion")]
    pixels = np.asarray(decoded(image).convert("RGB"))
    zoom = pixels.shape[0] // 100
    assert pixels.shape == (100 * zoom, 100 * zoom, 3)
    assert pixels[3 * zoom, 7 * zoom].tolist() == pytest.approx([213, 94, 0], abs=6)
    (pairs,) = [table for table in found.tables if table[0] == ["true", "predicted", "times"]]
    assert pairs[1] == ["class 3", "class 7", f"900 of {matrix[3].sum()}"]
    counts = [int(row[2].split()[0]) for row in pairs[1:]]
    assert counts == sorted(counts, reverse=True)
    (lowest,) = [table for table in found.tables if table[0] == ["class", "recall", "examples"]]
    recall = matrix.diagonal() / matrix.sum(axis=1)
    assert lowest[1][1] == f"{100 * recall.min():.1f} %"


def test_a_large_table_stays_small(tmp_path):
    """15 rows of 5 seeds, 200 classes, photographs, long curves: below 10 MB."""
    methods = [f"method_{i}" for i in range(15)]
    names = [f"class {i}" for i in range(200)]
    entries, stages = [], []
    for method in methods:
        for seed in range(5):
            entries.append(entry(method, seed, 50.0 + seed))
            folder = tmp_path / "stages" / entries[-1]["stage"]
            metrics(folder, falling(400))
            stages.append(record(entries[-1]["stage"], 4000))
        source = tmp_path / "stages/finetune/method_0/seed_0"
        folder = tmp_path / f"stages/finetune/{method}/seed_0"
        if folder == source:
            measured(folder, names, count=2, size=224)
        else:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 224, 224, 3), np.uint8)
    for name in ("further_pretrain", "self_distill_1"):
        report.save_pictures(tmp_path / "stages" / name / "reconstructions.png", noise)
        metrics(tmp_path / "stages" / name, falling(2000))
        stages.append(record(name, 20_000))
    found = made(saved(tmp_path, results(entries, methods, stages=stages)))
    assert len(curves(found)) == 17
    assert len([x for x in found.images() if x["alt"].startswith("Example")]) == 180
    assert decoded(found.images()[0]).format == "JPEG"
    assert (tmp_path / "report.html").stat().st_size < 10e6


def test_files_that_are_being_written(tmp_path):
    """A run goes on while the page is made: half a file is like none."""
    folder = tmp_path / "stages/finetune/finetune/seed_0"
    measured(folder, ["a", "b"], count=9, size=8)
    saved(tmp_path, results(PLAIN))
    assert len(made(tmp_path).images()) > 2
    for name in ("confusion.csv", "mistakes/00.png"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    found = made(tmp_path)
    assert "No confusion matrix" in found.shown
    assert found.shown.count("The picture is not there.") == 1


def test_a_flipped_bit_in_a_picture(tmp_path):
    """Whatever PIL makes of it, it is a picture or none."""
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)).save(path)
    data, found = path.read_bytes(), set()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        found.add(pictures.embed(path) is None)
    path.write_bytes(data[:11] + bytes([data[11] ^ 1]) + data[12:])
    assert pictures.embed(path) is None  # a ValueError of PIL's
    assert found == {True, False}


def test_weights(tmp_path):
    """What was loaded, by name; the digest is that of the file."""
    init = {
        "kind": "weights",
        "path": "/models/vit",
        "loaded": ["a.weight", "b.weight"],
        "initialised": ["decoder/x"],
        "left_out": [],
        "notes": ["positions resized from 14 x 14 to 2 x 2"],
    }
    (tmp_path / "stages/init/final").mkdir(parents=True)
    arrays = {"encoder/x": {"shape": [3, 4]}, "decoder/x": {"shape": [8]}}
    (tmp_path / "stages/init/final/manifest.json").write_text(json.dumps({"arrays": arrays}))
    (tmp_path / "stages/init/identity.json").write_text(json.dumps({"weights": "abc123"}))
    found = made(saved(tmp_path, results(PLAIN, init=init)))
    told = (
        "Weights: /models/vit, 2 tensors loaded, which fill 12 of the 20 parameters; 1 of the "
        "model's are not in the file and were initialised; 0 of the file's have no place in the "
        "model."
    )
    assert found.shown.count(told) == 2  # and at the top
    assert "SHA-256 of the file: abc123" in found.shown
    assert "positions resized from 14 x 14 to 2 x 2" in found.shown
    assert "1 initialised, not in the file decoder/x" in found.shown
    assert "left out, no place" not in found.shown


def test_the_teacher_has_initial_parameters_of_its_own(tmp_path):
    """Another file, of which other tensors may be lacking; or random ones, pre-trained."""
    init = {"kind": "weights", "path": "/models/large", "loaded": ["a"], "left_out": ["pooler"]}
    teachers = {"teacher/init@weights=large": init, "teacher/init@depth=4": {"kind": "scratch"}}
    told = results(PLAIN, init={"kind": "scratch"}, teachers=teachers)
    told["config"]["init"] = {"kind": "pretrain", "seed": 7}
    folder = tmp_path / "stages/teacher/init@weights=large"
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text(json.dumps({"weights": "abc123"}))
    found = made(saved(tmp_path, told))
    assert found.shown.count("Initial parameters of a teacher, teacher/init@weights=large") == 2
    assert found.shown.count("Weights: /models/large, 1 tensors loaded; 0 of the model's are") == 2
    assert "1 left out, no place in the model pooler" in found.shown
    assert "SHA-256 of the file: abc123" in found.shown
    assert found.shown.count("config.init.seed 7.") == 4
    for stage in ("pretrain", "teacher/pretrain@depth=4"):
        assert f"Then pre-trained on config.source: the stage {stage}." in found.shown


def test_data_facts(tmp_path):
    data = {
        "fingerprint": "f" * 64,
        "counts": {"train": 1234, "test": 56},
        "remarks": ["3 test images are in train too", "left out x.png: truncated"],
        "broken": {"x.png": "truncated"},
    }
    found = made(saved(tmp_path, results(PLAIN, data=data)))
    assert found.shown.count("3 test images are in train too") == 2  # and at the top
    assert "data: 1 broken file left out" in found.shown
    assert ["x.png", "truncated"] in [row for table in found.tables for row in table]
    assert "1,234 training examples · 56 test examples" in found.shown


def test_stages_of_other_rows_are_left_out(tmp_path):
    """A work directory keeps them; a finished run that does not name them has another table."""
    for name in ("finetune/mars/seed_0", "finetune/r3f/seed_0"):
        folder = metrics(tmp_path / "stages" / name, falling(3))
        (folder / "final").mkdir()
        (folder / "final/manifest.json").write_text("{}")
    stages = [record("finetune/mars/seed_0")]
    found = made(saved(tmp_path, results(PLAIN, stages=stages)))
    assert [name for name in curves(found) if "r3f" in name] == []
    assert len(curves(found)) == 1
    found = made(saved(tmp_path, results(PLAIN, stages=stages, complete=False)))
    assert len(curves(found)) == 2


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "not a work directory: no results.json and no stages in it"),
        ("{", "results.json: not readable as JSON: "),
        ("[]", "results.json: not the results of a run"),
    ],
)
def test_refused(tmp_path, capsys, content, line):
    if content:
        (tmp_path / "results.json").write_text(content)
    assert command.main(["--workdir", str(tmp_path)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert line in told
    assert not (tmp_path / "report.html").exists()


def test_a_page_that_cannot_be_written(tmp_path, capsys):
    saved(tmp_path, results(PLAIN))
    (tmp_path / "report.html").mkdir()
    assert command.main(["--workdir", str(tmp_path)]) == 2
    assert "report.html: cannot be written: " in capsys.readouterr().err


def test_worst_mistakes():
    """Wrong ones only, the most certain first, equals in the order of the split."""
    probability = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.8, 0.2], [0.1, 0.9]])
    assert mistakes.worst(np.array([1, 0, 0, 1, 1]), probability).tolist() == [0, 1, 3, 2]
    many = np.tile([[0.6, 0.4]], (50, 1))
    assert mistakes.worst(np.ones(50, int), many).tolist() == list(range(mistakes.MOST))


def test_new_mistakes_replace_the_old_ones(tmp_path):
    measured(tmp_path, ["a", "b"], count=20, size=8)
    assert len(list((tmp_path / "mistakes").iterdir())) == 12
    measured(tmp_path, ["a", "b"], count=20, seed=1)
    assert not (tmp_path / "mistakes").exists()
    assert all("text" in x for x in json.loads((tmp_path / "mistakes.json").read_text()))
    assert judging.worst(tmp_path, False)[1] == "kept"
