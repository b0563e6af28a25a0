"""The table command: real runs with a tiny model, repeated, extended, killed, tuned, refused."""

import csv
import gc
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from table_runs import (
    ARGUMENTS,
    ROOT,
    bug,
    interrupt,
    lines,
    make,
    nan,
    new_stages,
    note,
    records,
    results,
    snapshot,
    told,
    watch,
)

from sdfp import checkpoint, export, sealed, table
from sdfp.train import evaluation, loop

METHODS = "finetune,mars,further_pretrain,further_pretrain+mars"
NAMES = METHODS.split(",")
ALL = ("--methods", METHODS, "--seeds", "2")
FINETUNED = [f"finetune/{name}/seed_{seed}" for name in NAMES for seed in (0, 1)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A work directory with the four rows and two seeds. Not to be changed."""
    workdir = tmp_path_factory.mktemp("tables") / "finished"
    assert make(workdir, *ALL) == 0
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "work")


@pytest.fixture
def broken():
    """Stage name -> what is made of it in the stage's place."""
    return {}


@pytest.fixture
def trained(monkeypatch, broken):
    """The stages that are run or read, in their order."""
    return watch(monkeypatch, broken)


def test_a_table_is_written(finished):
    found, told = results(finished), lines(finished)
    assert found["complete"] is True
    assert list(told) == [line["method"] for line in told.values()] == NAMES
    for name, line in told.items():
        values = [entry["value"] for entry in found["results"] if entry["method"] == name]
        assert float(line["mean"]) == found["summary"][name]["accuracy"]["mean"]
        assert float(line["mean"]) == np.mean(values)
        assert float(line["std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        assert (line["n"], line["failed"], line["split"]) == ("2", "0", "test")
        assert int(line["steps"].removesuffix(".0")) == 8 if "further" in name else 4
        row = f"{float(line['mean']):.2f} ± {float(line['std']):.2f}"
        assert row in (finished / "table.md").read_text()
        assert row.replace("±", r"$\pm$") in (finished / "table.tex").read_text()
    assert len({line["mean"] for line in told.values()}) > 1  # else they would not tell much


def test_rows_share_stages(finished):
    found = records(finished)
    assert list(found) == [*FINETUNED[:4], "further_pretrain", *FINETUNED[4:]]
    for entry in results(finished)["results"]:
        shared = ["further_pretrain"] if "further" in entry["method"] else []
        assert entry["stages"] == [*shared, entry["stage"]]
        if shared:
            start = found["further_pretrain"]["encoder_digest"]
            assert found[entry["stage"]]["init_digest"] == start
    assert len({found[stage]["init_digest"] for stage in FINETUNED}) == 2
    assert len({found[stage]["digest"] for stage in FINETUNED}) == 8


def test_the_same_again_trains_nothing(workdir, monkeypatch, capsys):
    def never(*_, **__):
        raise AssertionError("this table has nothing to train and nothing to evaluate")

    before, found = snapshot(workdir), results(workdir)
    monkeypatch.setattr(loop, "compile_train", never)
    monkeypatch.setattr(evaluation, "log_probabilities", never)
    assert make(workdir, *ALL) == 0
    after = snapshot(workdir)
    written = {"results.json", "report.html", "table.md", "table.csv", "table.tex"}
    assert {path for path in after if after[path] != before.get(path)} == written
    assert {path for path in written if after[path][0] != before[path][0]} == set()
    assert results(workdir) == found
    said, error = capsys.readouterr()
    assert error == ""
    assert "\n" + (workdir / "table.md").read_text() + "\n" in said
    tables = f"tables: {workdir / 'table.md'}, table.csv, table.tex\n"
    assert said.endswith(tables + f"report: {workdir / 'report.html'}\n")


def test_more_rows_and_seeds_train_only_these(workdir):
    """And what a teacher is: of self_kd the same seed's row without it."""
    before = snapshot(workdir)
    methods = "finetune,self_kd,further_pretrain+self_kd,mars"
    assert make(workdir, "--methods", methods, "--seeds", "3") == 0
    rows = [f"finetune/{name}/seed_{seed}" for name in methods.split(",") for seed in range(3)]
    extra = "finetune/further_pretrain/seed_2"
    assert new_stages(workdir, before) == {*rows, extra} - {*FINETUNED}
    assert list(lines(workdir)) == methods.split(",")
    assert {line["n"] for line in lines(workdir).values()} == {"3"}
    found = records(workdir)
    for seed in range(3):
        learns = lambda name, s=seed: found[f"finetune/{name}/seed_{s}"]["teacher_digest"]
        assert learns("self_kd") == found[f"finetune/finetune/seed_{seed}"]["digest"]
        plain = found[f"finetune/further_pretrain/seed_{seed}"]["digest"]
        assert learns("further_pretrain+self_kd") == plain
        assert learns("mars") is None
    for entry in results(workdir)["results"]:
        if entry["method"] == "self_kd":
            teacher = f"finetune/finetune/seed_{entry['seed']}"
            assert entry["stages"] == [teacher, entry["stage"]]


@pytest.mark.slow
def test_a_larger_teacher_is_one_for_all_seeds(workdir):
    before = snapshot(workdir)
    assert make(workdir, "--methods", "finetune,kd", "--seeds", "2") == 0
    students = {f"finetune/kd/seed_{seed}" for seed in (0, 1)}
    assert new_stages(workdir, before) == {"teacher/init", "teacher/finetune", *students}
    found, kept = records(workdir), results(workdir)
    teacher = found["teacher/finetune"]["digest"]
    assert {found[name]["teacher_digest"] for name in students} == {teacher}
    assert [*kept["teachers"]] == ["teacher/init"]
    assert all(e["stages"] == ["teacher/finetune", e["stage"]] for e in kept["results"][2:])
    deeper, _ = checkpoint.restore(workdir / "stages/teacher/finetune/final")
    assert {len(leaf) for leaf in checkpoint.flatten(deeper["encoder"]["blocks"]).values()} == {2}


WORKER = """
import os, signal, sys
from sdfp import checkpoint, table

def put_in_place(temporary, directory, put=checkpoint._put_in_place):
    put(temporary, directory)
    if str(directory).endswith(os.environ.get("DIE_AFTER", "never")):
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint._put_in_place = put_in_place
sys.exit(table.main(sys.argv[1:]))
"""


@pytest.mark.slow  # interrupted in this process: test_interrupted_half_way
def test_killed_half_way_and_run_again(finished, workdir, tmp_path):
    """In a middle stage; in the end the same bits and the same table as undisturbed."""
    work, rows = tmp_path / "killed", ["--methods", "finetune,further_pretrain"]
    assert make(workdir, *rows) == 0  # of what is there
    rows += ["--workdir", str(work), "--config.run.checkpoint_every=2"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = lambda **more: subprocess.run(
        [sys.executable, "-c", WORKER, *ARGUMENTS, *rows],
        env=environment | more,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    killed = process(DIE_AFTER="further_pretrain/step_000000002")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert results(work)["complete"] is False
    assert [entry["method"] for entry in results(work)["results"]] == ["finetune"]
    assert not (work / "table.md").exists()
    ended = process()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "further_pretrain: goes on after step 2 of 4" in ended.stdout
    untimed = lambda record: {k: v for k, v in record.items() if "second" not in k}
    expected, found = records(finished), records(work)
    assert [*found] == ["finetune/finetune/seed_0", "further_pretrain", FINETUNED[4]]
    assert all(untimed(found[name]) == untimed(expected[name]) for name in found)
    for part in ("results", "summary", "complete"):
        assert results(work)[part] == results(workdir)[part]
    assert list(map(untimed, lines(work).values())) == list(map(untimed, lines(workdir).values()))


def test_a_failing_cell(workdir, trained, broken, capsys):
    """One line, exit code 2; the other seed and the other rows are there."""
    shutil.rmtree(workdir / "stages/finetune/mars")
    broken["finetune/mars/seed_0"] = nan
    assert make(workdir, *ALL) == 2
    error = "finetune/mars/seed_0: loss is not finite at step 1. Try a lower"
    start = "1 failed, the others are in the results; mars, seed 0: "
    assert told(capsys).startswith(start + error)
    found = results(workdir)
    (failed,) = found["failed"]
    assert failed.pop("error").startswith(error)
    expected = {"method": "mars", "varied": {}, "pretrain_seed": None, "seed": 0, "ours": False}
    assert failed == expected
    assert found["complete"] is True  # there is nothing left to try
    cells = [(entry["method"], entry["seed"]) for entry in found["results"]]
    assert cells == [(name, s) for name in NAMES for s in (0, 1) if (name, s) != ("mars", 0)]
    text = (workdir / "table.md").read_text()
    assert f"- Failed: mars, seed 0: {error}" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| mars ")]
    assert "1 (1 failed)" in row
    assert f"mars, seed 0 failed: {error}" in (workdir / "report.html").read_text()
    # Mended, it is trained, and the table is whole.
    broken.clear()
    assert make(workdir, *ALL) == 0
    assert results(workdir)["failed"] == []
    assert "ailed" not in (workdir / "table.md").read_text()


def test_a_failed_shared_stage_is_tried_once(workdir, trained, broken, capsys):
    shutil.rmtree(workdir / "stages/further_pretrain")
    broken["further_pretrain"] = nan
    assert make(workdir, *ALL) == 2
    assert trained.count("further_pretrain") == 1
    assert told(capsys).startswith("2 failed, the others are in the results; further_pretrain: ")
    assert [cell["method"] for cell in results(workdir)["failed"]] == NAMES[2:]
    assert {cell["seed"] for cell in results(workdir)["failed"]} == {None}
    assert [lines(workdir)[name]["failed"] for name in NAMES] == ["0", "0", "2", "2"]
    row = next(x for x in (workdir / "table.md").read_text().splitlines() if "+mars " in x)
    assert " failed " in row


def test_a_bug_is_told_with_its_traceback(workdir, trained, broken, capsys):
    broken["finetune/mars/seed_0"] = bug
    with pytest.raises(RuntimeError, match=r"1 failed, .*; mars, seed 0: of ours"):
        make(workdir, *ALL)
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "ZeroDivisionError: of ours, in finetune/mars/seed_0\n" in error
    found = results(workdir)
    assert [cell["ours"] for cell in found["failed"]] == [True]
    assert len(found["results"]) == 7
    assert lines(workdir)["mars"]["failed"] == "1"


def test_a_table_where_everything_failed(workdir, trained, broken, capsys):
    shutil.rmtree(workdir / "stages/finetune/mars")
    broken["finetune/mars/seed_0"] = nan
    assert make(workdir, "--methods", "mars") == 2
    told(capsys)
    (row,) = [x for x in (workdir / "table.md").read_text().splitlines() if x.startswith("| mars")]
    assert " failed " in row
    assert (results(workdir)["results"], results(workdir)["complete"]) == ([], True)


def test_failures_keep_nothing_on_the_devices(workdir, trained, broken, capsys):
    """Each failed cell would hold its whole training state, if its traceback were kept."""
    alive = []

    def counted(stage):
        gc.collect()
        alive.append(len(jax.live_arrays()))
        return nan(stage)

    shutil.rmtree(workdir / "stages/finetune/mars")
    shutil.rmtree(workdir / "stages/finetune/further_pretrain+mars")
    rows = ("mars", "further_pretrain+mars")
    broken.update({f"finetune/{name}/seed_{seed}": counted for name in rows for seed in range(3)})
    assert make(workdir, "--methods", ",".join(rows), "--seeds", "3") == 2
    assert told(capsys).startswith("6 failed")
    assert len(alive) == 6
    assert max(alive[1:]) <= alive[1]


def test_interrupted_half_way(workdir, trained, broken, capsys):
    """What was there of the cells that it did not come to is still there."""
    before = results(workdir)
    shutil.rmtree(workdir / "stages/finetune/mars/seed_0")
    broken["finetune/further_pretrain/seed_0"] = interrupt
    assert make(workdir, *ALL) == 130
    assert told(capsys) == "interrupted"
    assert trained[-1] == "finetune/further_pretrain/seed_0"
    found = results(workdir)
    assert found["complete"] is False
    cell = lambda entry: (entry["stage"], entry["stage_key"], entry["value"], entry["distance"])
    assert sorted(map(cell, found["results"])) == sorted(map(cell, before["results"]))
    new, old = ({x["name"]: x for x in of["stages"]} for of in (found, before))
    assert new.keys() == old.keys()
    different = [name for name in new if new[name] != old[name]]
    assert different == ["finetune/mars/seed_0"]  # it took another time
    assert table.main(["--from", str(workdir), "--out", str(workdir)]) == 0
    assert "has not been run to its end" in (workdir / "table.md").read_text()
    assert {line["n"] for line in lines(workdir).values()} == {"2"}


def test_interrupted_with_other_rows_and_seeds(workdir, trained, broken):
    """Nothing of rows and seeds that are not this run's."""
    shutil.rmtree(workdir / "stages/finetune/finetune/seed_0")
    broken["finetune/finetune/seed_2"] = interrupt
    rows = ("--methods", "finetune,further_pretrain", "--config.seeds=(0,2,1)")
    assert make(workdir, *rows) == 130
    cells = [(entry["method"], entry["seed"]) for entry in results(workdir)["results"]]
    assert cells == [(name, seed) for name in ("finetune", "further_pretrain") for seed in (0, 1)]


def test_interrupted_on_another_split(workdir, trained, broken):
    """Scores of the test and of the validation split are not averaged."""
    shutil.rmtree(workdir / "stages/finetune/finetune/seed_0")
    broken["finetune/finetune/seed_1"] = interrupt
    assert make(workdir, *ALL, "--config.evaluate_on=validation") == 130
    assert {entry["split"] for entry in results(workdir)["results"]} == {"validation"}


def test_other_settings_stop_at_once(workdir, trained, capsys):
    before = snapshot(workdir)
    assert make(workdir, *ALL, "--config.method.mars.head_radius=9") == 2
    line = told(capsys)
    assert line.startswith(f"{workdir}/stages/finetune/mars/seed_0 was made with other settings: ")
    assert "method.mars.head_radius (16.0 there, 9.0 now)" in line
    assert trained == []
    assert snapshot(workdir) == before
    # Also where it is a stage of a row that would come last.
    last = "--config.stages.further_pretrain.steps=5"
    assert make(workdir, "--methods", "self_kd,further_pretrain", last) == 2
    line = told(capsys)
    assert line.startswith(f"{workdir}/stages/further_pretrain was made with other settings: ")
    assert "recipe.steps (4 there, 5 now)" in line
    assert (trained, snapshot(workdir)) == ([], before)


def test_pretraining_is_repeated(workdir):
    before = snapshot(workdir)
    methods = "finetune,further_pretrain,further_pretrain+self_kd"
    assert make(workdir, "--methods", methods, "--seeds", "2", "--pretrain_seeds", "2") == 0
    again = "further_pretrain@pretrain_seed=1"
    tuned = [f"further_pretrain+self_kd{x}" for x in ("", "@pretrain_seed=1")]
    expected = {f"finetune/{name}/seed_{seed}" for name in (again, *tuned) for seed in (0, 1)}
    assert new_stages(workdir, before) == {again, *expected}
    found = lines(workdir)
    assert [line["n"] for line in found.values()] == ["2", "4", "4"]
    assert [line["pretrain_seeds"] for line in found.values()] == ["1", "2", "2"]
    seeds = [entry["pretrain_seed"] for entry in results(workdir)["results"]]
    assert seeds == [None, None, *[0, 0, 1, 1] * 2]
    assert "over 2 pre-training × 2 fine-tuning seeds" in (workdir / "table.md").read_text()
    made = records(workdir)
    assert made[again]["digest"] != made["further_pretrain"]["digest"]
    for repeat in ("", "@pretrain_seed=1"):
        for seed in (0, 1):
            student = made[f"finetune/further_pretrain+self_kd{repeat}/seed_{seed}"]
            teacher = made[f"finetune/further_pretrain{repeat}/seed_{seed}"]
            assert student["teacher_digest"] == teacher["digest"]
            assert student["init_digest"] == made[f"further_pretrain{repeat}"]["encoder_digest"]


def kd(workdir, teacher, *more):
    return make(workdir, "--methods", "kd", f"--config.method.kd.teacher={teacher}", *more)


def test_a_given_teacher(finished, tmp_path):
    """A stage, a work directory (its last method's first seed), an exported folder."""
    stage, last = "finetune/mars/seed_0", "finetune/further_pretrain+mars/seed_0"
    folder = tmp_path / "exported"
    arguments = [f"--workdir={finished}", f"--stage={stage}", f"--out={folder}"]
    assert export.main(arguments) == 0
    found, digests, before = records(finished), [], snapshot(finished)
    given = ((finished / "stages" / stage, stage), (finished, last), (folder, stage))
    for number, (teacher, expected) in enumerate(given):
        work = tmp_path / str(number)
        assert kd(work, teacher) == 0
        (record,) = results(work)["stages"]
        assert record["teacher_digest"] == found[expected]["digest"]
        digests.append(record["digest"])
        assert results(work)["results"][0]["stages"] == ["finetune/kd/seed_0"]
    assert digests[0] == digests[2] != digests[1]
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"class_names": list("1032456789")}, "it tells 10 classes apart, which are not the 10"),
        ({"mean": [0.123]}, "its input is made otherwise than the data's: mean"),
    ],
)
def test_a_teacher_that_does_not_fit(workdir, tmp_path, trained, capsys, change, line):
    """It is read before any training, also of the rows before it."""
    path = workdir / "stages/finetune/mars/seed_0"
    card = json.loads((path / "model.json").read_text())
    block = card["input"] if "mean" in change else card
    assert block.keys() >= change.keys()
    block.update(change)
    (path / "model.json").write_text(json.dumps(sealed.seal(card)))
    work, teacher = tmp_path / "other", f"--config.method.kd.teacher={path}"
    assert make(work, "--methods", "further_pretrain,kd", teacher) == 2
    assert told(capsys).startswith(f"config.method.kd.teacher={path}: {line}")
    assert trained == []
    assert not (work / "results.json").exists()


ABLATIONS = ("distill_only", "prediction_matching", "weight_matching_l2", "weight_matching_mars")


def test_ablations_see_what_the_student_sees(workdir, trained, broken):
    """Its batches, masks and dropout, which come from the seed and the stream."""
    seen = {}
    broken.update({name: note(seen) for name in ("self_distill_1", *ABLATIONS)})
    methods = ",".join(("self_distillation", *ABLATIONS))
    assert make(workdir, "--methods", methods) == 2
    assert list(seen) == ["self_distill_1", *ABLATIONS]
    (drawn,) = {(stage.stream, stage.seed, stage.recipe) for stage in seen.values()}
    assert drawn[:2] == ("self_distill_1", 0)
    assert len({id(stage.feed) for stage in seen.values()}) == 1


@pytest.mark.slow
def test_self_distillation_with_label_smoothing(workdir):
    methods = ("self_distillation", "self_distillation+label_smoothing")
    assert make(workdir, "--methods", ",".join(methods)) == 0
    found = records(workdir)
    plain, smoothed = (found[f"finetune/{name}/seed_0"] for name in methods)
    start = found["self_distill_1"]["encoder_digest"]
    assert plain["init_digest"] == smoothed["init_digest"] == start
    assert plain["digest"] != smoothed["digest"]
    logs = [workdir / f"stages/finetune/{name}/seed_0/metrics.jsonl" for name in methods]
    assert len({json.loads(log.read_text().splitlines()[-1])["loss"] for log in logs}) == 2


def test_r3f_is_in_float32(tmp_path, trained, broken):
    seen, rows = {}, ("finetune", "r3f")
    broken.update({f"finetune/{name}/seed_0": note(seen) for name in rows})
    options = ("--methods", ",".join(rows), "--config.precision=bfloat16")
    assert make(tmp_path / "work", *options) == 2
    assert [x.identity["precision"] for x in seen.values()] == ["bfloat16", "float32"]


@pytest.mark.slow
def test_r3f_is_in_float32_whatever_the_others_are(tmp_path, capsys):
    work = tmp_path / "work"
    assert make(work, "--methods", "finetune,r3f", "--config.precision=bfloat16") == 0
    files = [work / f"stages/finetune/{name}/seed_0/identity.json" for name in ("finetune", "r3f")]
    precisions = [json.loads(file.read_text())["precision"] for file in files]
    assert precisions == ["bfloat16", "float32"]
    assert results(work)["precision"] == "bfloat16"
    assert [entry["precision"] for entry in results(work)["results"]] == precisions
    told = "- r3f: fine-tuned in float32, the other rows in bfloat16."
    assert told in (work / "table.md").read_text()
    said = capsys.readouterr().out.splitlines()
    assert said.count("r3f: fine-tuning in float32, as the method needs") == 1


def test_list_changes_nothing(workdir, trained, tmp_path, capsys):
    stage = workdir / "stages/finetune/mars/seed_1"
    shutil.move(stage / "final", stage / "step_000000002")
    shutil.rmtree(workdir / "stages/finetune/further_pretrain+mars/seed_0")
    before = snapshot(workdir)
    others = ("--config.stages.further_pretrain.steps=5", "--list")
    assert make(workdir, *ALL, *others) == 0
    *said, last = capsys.readouterr().out.splitlines()
    states = dict(line.split(maxsplit=1) for line in said)
    assert list(states) == [*FINETUNED[:4], "further_pretrain", *FINETUNED[4:]]
    changed = "was made with other settings: recipe.steps (4 there, 5 now). Use another --workdir,"
    changed = f"5 steps  refused: {workdir}/stages/further_pretrain {changed}"
    assert states.pop("further_pretrain").startswith(changed)
    assert states.pop("finetune/mars/seed_1") == "4 steps  interrupted after step 2"
    assert states.pop("finetune/further_pretrain+mars/seed_0") == "4 steps  to do"
    assert set(states.values()) == {"4 steps  there"}
    assert last == "6 of 9 stages there; 13 steps to do at most"
    assert snapshot(workdir) == before
    assert make(tmp_path / "new", "--list") == 0
    assert trained == []
    assert not (tmp_path / "new").exists()


def test_tables_are_joined(finished, workdir, tmp_path, trained, capsys):
    before = snapshot(finished)
    out = tmp_path / "joined"
    assert table.main(["--from", str(finished), str(workdir), "--out", str(out)]) == 0
    with (out / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["data"] for row in rows] == ["tiny (finished)"] * 4 + ["tiny (work)"] * 4
    expected = [line["mean"] for line in lines(finished).values()]
    assert [row["mean"] for row in rows] == expected * 2
    assert (out / "table.md").read_text() in capsys.readouterr().out
    assert (snapshot(finished), trained) == (before, [])
