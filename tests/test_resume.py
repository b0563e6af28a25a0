"""Runs that are killed, repeated, changed and damaged: real ones, with a tiny model."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest

from sdfp import checkpoint, config, experiment, parallel
from sdfp.data import digits
from sdfp.data.interface import Split
from sdfp.data.loading import Feed
from sdfp.train import evaluation, loop
from sdfp.types import UserError, WorkdirError

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "tiny_config.py"
FINETUNE = "finetune/self_distillation/seed_0"
ENTRIES = {"stages", "tensorboard", "results.json", "report.html"}
TIMES = ("examples_per_second", "probe_seconds")
STAGES = (
    "pretrain",
    "further_pretrain",
    "finetune/further_pretrain/seed_0",
    "self_distill_1",
    FINETUNE,
)


@pytest.fixture(autouse=True)
def few_crops(monkeypatch):
    monkeypatch.setattr(digits, "CROPS", 200)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """`python -m sdfp.main` on the tiny config; compiled programs are shared."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def start(workdir, *overrides, **environment):
        arguments = [f"--config={CONFIG}", f"--workdir={workdir}", *overrides]
        return subprocess.run(
            [sys.executable, "tests/tiny_process.py", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", cache),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=600,
        )

    return start


@pytest.fixture(scope="module")
def finished(process, tmp_path_factory):
    """A work directory of an undisturbed run, without checkpoints between. Not to be changed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    teachers = workdir.parent / "teachers.json"
    ended = process(workdir, "--config.run.checkpoint_every=1000", TEACHERS=str(teachers))
    assert ended.returncode == 0, ended.stderr
    (workdir / "stdout").write_text(ended.stdout)
    (workdir / "stderr").write_text(ended.stderr)
    shutil.copy(teachers, workdir)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "work")


def run(workdir, *overrides):
    return experiment.run(config.read(str(CONFIG), overrides), workdir)


def refused(workdir, *overrides) -> str:
    """The line with which a run is refused."""
    with pytest.raises(UserError) as caught:
        experiment.refuse_failed(run(workdir, *overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def final_digests(workdir):
    return {name: checkpoint.stored_digest(workdir / "stages" / name / "final") for name in STAGES}


def losses(workdir, name):
    lines = (workdir / "stages" / name / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMES} for x in lines]


def snapshot(workdir):
    """Every file, with what is in it and when it was written."""
    return {
        path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in workdir.rglob("*")
        if path.is_file()
    }


def test_an_undisturbed_run_is_quiet(finished):
    """Progress on stdout; no warning of any library, no bar, no log on stderr."""
    assert (finished / "stderr").read_text() == ""
    said = (finished / "stdout").read_text()
    assert said.startswith("sdfp ")
    assert all(f"{name}: 8 steps of 8\n" in said for name in STAGES)
    assert f"| self_distillation | {results(finished)['results'][1]['value']:.3f} " in said
    assert said.splitlines()[-2].startswith("results: ")
    assert said.splitlines()[-1] == f"report: {finished / 'report.html'}"


DEATHS = (  # when the process dies, and where the next one goes on
    # The new checkpoint is complete, and then damaged: the one before it is still there.
    ("after pretrain/step_000000004", "pretrain: goes on after step 2 of 8"),
    # All of it is on the disk, but not under its name: this one does not count.
    ("before further_pretrain/step_000000006", "pretrain: goes on after step 4 of"),
    # SIGTERM while the devices are at work: what they come to is saved.
    ("asked self_distill_1/step_000000002", "distill_1: goes on after step"),
    # All steps are done, the final parameters are not there.
    (f"before {FINETUNE}/final", f"{FINETUNE}: goes on after step 6 of 8"),
)


def flip_a_bit(folder):
    """In the largest file."""
    files = (path for path in folder.rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x10
    largest.write_bytes(data)


@pytest.mark.slow  # six processes: a minute
def test_stopped_once_in_every_kind_of_stage(finished, process, tmp_path):
    """SIGKILL around a save, or SIGTERM, and the same command again: in the end the same bits,
    metrics and results as undisturbed (and without checkpoints)."""
    work = tmp_path / "work"
    expected = "pretrain: 8 steps of 8"
    for death, going_on in DEATHS:
        stopped = process(work, DIE_AT=death)
        folder = work / "stages" / death.split()[1].rsplit("/", 1)[0]
        asked = death.startswith("asked")
        assert stopped.returncode == (143 if asked else -signal.SIGKILL), stopped.stderr
        assert all(part in stopped.stdout for part in expected.split("|"))
        if asked:
            assert stopped.stderr.endswith(
                "sdfp: stopped by SIGTERM; the same command goes on from where it was\n"
            )
            assert checkpoint.last_step(folder) > 2
        if death.startswith("after"):
            flip_a_bit(folder / "step_000000004")
            going_on = f"step_000000004: not what was saved: arrays/|{going_on}"
        assert not checkpoint.exists(folder / "final")
        assert (work / "lock").exists() != asked  # left by a kill, and no obstacle
        told = work / "results.json"
        assert not told.exists() or not results(work)["complete"]
        expected = going_on
    ended = process(work)
    assert ended.returncode == 0, ended.stderr
    assert expected in ended.stdout
    assert final_digests(work) == final_digests(finished)
    assert {path.name for path in work.iterdir()} == ENTRIES
    for name in STAGES:
        assert losses(work, name) == losses(finished, name)
        steps = [2, 4, 6, 8] if name.startswith("finetune") else [0, 2, 3, 4, 6, 6, 8, 8]
        assert [line["step"] for line in losses(work, name)] == steps  # probes at 0, 3, 6, 8
        left = (work / "stages" / name).iterdir()
        assert not [path for path in left if path.name.startswith(("step_", "final."))]
    for part in ("results", "summary", "init", "data", "versions"):
        assert results(work)[part] == results(finished)[part]
    for name in ("predictions.csv", "confusion.csv"):
        path = f"stages/{FINETUNE}/{name}"
        assert (work / path).read_bytes() == (finished / path).read_bytes()


def test_second_run_reads_everything(workdir, monkeypatch, capsys):
    """It trains and evaluates nothing and tells the same results."""

    def never(*_, **__):
        raise AssertionError("this run has nothing to train and nothing to evaluate")

    before, told = snapshot(workdir), results(workdir)
    monkeypatch.setattr(loop, "compile_train", never)
    monkeypatch.setattr(evaluation, "log_probabilities", never)
    returned = run(workdir, "--config.run.checkpoint_every=1000")
    assert capsys.readouterr().out.count(": finished, verified") >= len(STAGES)
    assert results(workdir) | {"command": told["command"]} == told  # that was another process
    assert json.loads(json.dumps(returned)) == results(workdir)
    after = snapshot(workdir)
    assert {path for path in after if after[path] != before.get(path)} == {workdir / "results.json"}
    assert after.keys() == before.keys()


@pytest.mark.parametrize(
    ("overrides", "stage", "keys"),
    [
        (["--config.stages.pretrain.steps=9"], "pretrain", ["recipe.steps (8 there, 9 now)"]),
        (["--config.seed=1"], "pretrain", ["seed (0 there, 1 now)"]),
        (["--config.init.seed=1"], "init", ["seed (0 there, 1 now)"]),
        (["--config.precision=bfloat16"], "pretrain", ["precision (float32 there, bfloat16 now)"]),
        (["--config.source.split_seed=1"], "pretrain", ["data ("]),
        (["--config.model.mask_ratio=0.5"], "pretrain", ["model.mask_ratio (0.75 there, 0.5"]),
        (["--config.data.train_labels=30"], "further_pretrain", ["data ("]),
        (
            [
                "--config.stages.further_pretrain.learning_rate=0.5",
                "--config.stages.further_pretrain.frozen=bias",
            ],
            "further_pretrain",
            [
                "recipe.frozen (['pos_embed'] there, ['bias'] now)",
                "recipe.learning_rate (0.001 there, 0.5 now)",
            ],
        ),
        (
            ["--config.method.self_distillation.distill_weight=2"],
            "self_distill_1",
            ["weights.distill (1.0 there, 2.0 now)"],
        ),
        (
            ["--config.method.self_distillation.features=all"],
            "self_distill_1",
            ["features (cls there, all now)"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_settings_are_refused(workdir, overrides, stage, keys):
    before = snapshot(workdir)
    line = refused(workdir, *overrides)
    assert line.startswith(f"{workdir / 'stages' / stage} was made with other settings: {keys[0]}")
    assert line.endswith("Use another --workdir, or delete this folder to make the stage again")
    assert line.count(" there, ") == len(keys)
    assert all(key in line for key in keys)
    assert snapshot(workdir) == before


def test_bookkeeping_may_change_and_rows_may_be_added(workdir, capsys):
    """Other logging, back end, methods and seeds: what was trained before is used."""
    told = run(
        workdir,
        "--config.run.log_every=3",
        "--config.run.checkpoint_every=4",
        "--config.run.steps_per_call=3",
        "--config.run.pictures=0",
        "--config.run.eval_batch_size=50",
        "--noconfig.run.tensorboard",
        "--config.parallel.backend=pmap",
        "--config.name=else",
        "--config.methods=self_distillation",
        "--config.seeds=1,0",
    )
    said = capsys.readouterr().out
    assert "finetune/self_distillation/seed_1: 8 steps of 8" in said
    assert said.count(" steps of 8") == 1
    old = [entry for entry in told["results"] if entry["seed"] == 0]
    assert old == [e for e in results(workdir)["results"] if e["seed"] == 0]
    summary = told["summary"]["self_distillation"]["accuracy"]
    values = [entry["value"] for entry in told["results"]]
    assert summary == {
        "mean": pytest.approx(np.mean(values)),
        "std": pytest.approx(np.std(values, ddof=1)),
        "n": 2,
    }


def test_the_teacher_stays_as_it_was(finished):
    """Digests around the distilling stage, and of the stage that the teacher comes from."""
    teachers = json.loads((finished / "teachers.json").read_text())
    records = {record["name"]: record for record in results(finished)["stages"]}
    further, _ = checkpoint.restore(finished / "stages" / "further_pretrain" / "final")
    before, after = teachers["self_distill_1"]
    assert before == after == checkpoint.digest(further["encoder"])
    assert records["self_distill_1"]["teacher_digest"] == before
    assert records["further_pretrain"]["encoder_digest"] == before
    nothing = checkpoint.digest(None)
    for name in set(STAGES) - {"self_distill_1"}:
        assert teachers[name] == [nothing, nothing]
        assert records[name]["teacher_digest"] is None
    # The student starts where the teacher started, and becomes something else.
    student = records["self_distill_1"]
    assert student["init_digest"] == records["pretrain"]["digest"]
    assert student["init_digest"] == records["further_pretrain"]["init_digest"]
    assert student["digest"] != records["further_pretrain"]["digest"]


@pytest.mark.parametrize("stage", ["init", "pretrain", "self_distill_1"])
def test_damaged_checkpoint_stops_the_run(workdir, stage):
    final = workdir / "stages" / stage / "final"
    flip_a_bit(final)
    before = snapshot(workdir)
    with pytest.raises(UserError) as caught:
        run(workdir)
    assert str(caught.value).startswith(f"{final}: ")
    assert f"Delete {workdir / 'stages' / stage} to train this stage again" in str(caught.value)
    assert snapshot(workdir) == before


def test_an_interrupted_stage_without_a_good_checkpoint_starts_anew(workdir, finished, capsys):
    """It says so, and the end is the same."""
    folder = workdir / "stages" / FINETUNE
    shutil.rmtree(folder / "final")
    checkpoint.save_step(folder, 2, {"step": np.array(2, np.int32)}, {"seconds": 1.0})
    (folder / "step_000000002" / checkpoint.MANIFEST).write_text("{}")
    run(workdir)
    said = capsys.readouterr().out
    assert f"warning: {folder / 'step_000000002'}: cannot be read" in said
    assert "none of its checkpoints is good: it starts anew" in said
    assert f"{FINETUNE}: 8 steps of 8" in said
    assert final_digests(workdir) == final_digests(finished)


def test_a_state_of_other_software_is_refused_and_left_alone(workdir):
    """As of another optax: it is not damaged, and hours may be in it."""
    folder = workdir / "stages" / FINETUNE
    shutil.rmtree(folder / "final")
    checkpoint.save_step(folder, 2, {"step": np.array(2, np.int32)}, {"seconds": 1.0})
    with pytest.raises(WorkdirError, match=r"_000000002: does not fit this model at .*: other"):
        run(workdir)
    assert (folder / "step_000000002").is_dir()


def test_results_tell_everything(finished):
    told = results(finished)
    assert told["config"]["stages"]["finetune"]["steps"] == 8
    assert told["config"]["run"]["checkpoint_every"] == 1000
    assert told["config"]["methods"] == ["further_pretrain", "self_distillation"]
    assert told["config"]["model_name"] == "vit_mae"
    assert told["model"]["patch_size"] == 4
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        assert told["versions"][package] == metadata.version(package)
    if (Path(__file__).parents[1] / ".git").exists():  # not in a copy of the files alone
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", told["versions"]["commit"])
    assert told["versions"]["python"] == sys.version.split()[0]
    assert told["device"] == "1 x cpu"
    assert told["precision"] == "float32"
    assert told["init"]["kind"] == "scratch"
    assert told["init"]["digest"] == checkpoint.stored_digest(
        finished / "stages" / "init" / "final"
    )
    assert told["data"]["counts"] == {"train": 40, "unlabelled": 40, "validation": 0, "test": 797}
    assert [record["name"] for record in told["stages"]] == list(STAGES)
    for record in told["stages"]:
        assert len(record["key"]) == 16
        assert record["steps"] == 8
        assert record["seconds"] > 0
        assert record["examples_per_second"] > 0
        assert record["digest"] == final_digests(finished)[record["name"]]
    assert len({record["key"] for record in told["stages"]}) == len(STAGES)
    initial, _ = checkpoint.restore(finished / "stages" / "pretrain" / "final")
    keys = {record["name"]: record["key"] for record in told["stages"]}
    for method, entry in zip(told["config"]["methods"], told["results"], strict=True):
        assert entry["method"] == method
        assert (entry["seed"], entry["split"], entry["metric"]) == (0, "test", "accuracy")
        assert entry["stage"] == f"finetune/{method}/seed_0"
        assert entry["stage_key"] == keys[entry["stage"]]
        assert 0 <= entry["value"] <= 100
        assert entry["test_loss"] > 0
        assert entry["train_loss"] > 0
        tuned, _ = checkpoint.restore(finished / "stages" / entry["stage"] / "final")
        moved = jax.tree.map(lambda a, b: (a - b).ravel(), tuned["encoder"], initial["encoder"])
        length = np.linalg.norm(np.concatenate(jax.tree.leaves(moved)))
        assert entry["distance"] == pytest.approx(length, rel=1e-5)
        summary = told["summary"][method]
        for metric, value in [("accuracy", "value")] + [
            (name, name) for name in ("test_loss", "train_loss", "train_accuracy", "distance")
        ]:
            assert summary[metric] == {"mean": entry[value], "std": None, "n": 1}
    assert list(told["summary"]) == ["further_pretrain", "self_distillation"]


def test_predictions_are_those_that_are_reported(finished):
    for entry in results(finished)["results"]:
        folder = finished / "stages" / entry["stage"]
        with (folder / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len({row["id"] for row in rows}) == len(rows) == 797
        right = [row["label"] == row["predicted"] for row in rows]
        assert 100 * np.mean(right) == pytest.approx(entry["value"], abs=1e-9)
        assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)  # the best of 10
        with (folder / "confusion.csv").open(newline="") as file:
            _, *matrix = csv.reader(file)
        counts = np.array([row[1:] for row in matrix], int)
        assert counts.sum() == 797
        assert np.trace(counts) == sum(right)


def test_masked_stages_leave_pictures(finished):
    for name in STAGES:
        exists = (finished / "stages" / name / "reconstructions.png").exists()
        assert exists == (not name.startswith("finetune/"))
        assert len(list((finished / "tensorboard" / name).glob("events.*"))) == 1


def test_loss_that_is_not_finite_stops_the_run(workdir):
    """One line; the checkpoints before it and all other stages stay as they are."""
    folder = workdir / "stages" / FINETUNE
    shutil.rmtree(folder)
    before = snapshot(workdir)
    del before[workdir / "results.json"]
    line = refused(
        workdir,
        "--config.methods=self_distillation",
        "--config.stages.finetune.learning_rate=1e30",
        "--config.stages.finetune.warmup_steps=7",  # the first step is of size 0
        "--config.run.checkpoint_every=1",
    )
    assert line.startswith("1 failed, the others are in the results; self_distillation, seed 0: ")
    (failure,) = results(workdir)["failed"]
    assert failure["error"].startswith(f"{FINETUNE}: ")
    assert " is not finite at step " in line
    assert "the last checkpoint is kept" in line
    step = int(line.split(" at step ")[1].split(".")[0])
    assert not checkpoint.exists(folder / "final")
    *_, kept = sorted(folder.glob("step_*"))
    params, facts = checkpoint.restore(kept)
    assert facts["step"] == step - 1 > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    after = snapshot(workdir)
    assert {path: after[path] for path in before} == before


def test_predictions_follow_the_split_that_is_reported(tmp_path, monkeypatch):
    """test, then validation, then another test: predictions.csv is of what was asked last."""
    rng = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", 4), ("validation", 3), ("test", 5), ("new test", 6)):
        ids = tuple(f"{name}/{i}" for i in range(count))
        splits[name] = Split({"label": np.arange(count) % 2}, ids)
    monkeypatch.setattr(
        evaluation,
        "log_probabilities",
        lambda params, feed, **_: np.log(rng.dirichlet([1, 1], len(feed.split))),
    )

    def measure(name):
        return evaluation.evaluate(
            tmp_path,
            {},
            {"params": "digest", "held out": name},
            Feed(splits["train"], {}, {}),
            splits[name],
            class_names=("a", "b"),
            show=lambda split, places: [split.ids[place] for place in places],
            resident_gb=1.0,
            devices=parallel.make("jit", 1),
        )

    for name in ("test", "validation", "new test"):
        metrics = measure(name)
        assert metrics == measure(name)  # read, not drawn again
        text = (tmp_path / "predictions.csv").read_text()
        assert text.count(f"{name}/") == len(splits[name])


def test_a_misspelt_parameter_name_is_refused(workdir):
    line = refused(workdir, "--config.stages.finetune.frozen=pos_embeds")
    # Beside what the stage that is there was made with.
    assert "config.stages.finetune.frozen: no parameter is called 'pos_embeds'" in line


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file").startswith(
        f"--workdir={tmp_path / 'file'}: a file or a broken link"
    )


def test_no_such_split_to_report(workdir):
    assert "no validation split" in refused(workdir, "--config.evaluate_on=validation")


def test_fine_tuning_settings_leave_the_other_stages_alone(workdir):
    line = refused(workdir, "--config.model.dropout_finetune=0.2")
    assert "/stages/finetune/further_pretrain/seed_0 was made with other settings" in line


@pytest.mark.slow  # many kills: minutes
@pytest.mark.parametrize(
    "how", [("--kills=5", "--terms=3"), ("--kills=2", "--terms=1", "--processes=2")]
)
def test_stopped_at_random_moments(tmp_path, how):
    """SIGKILL and SIGTERM over all stages, of saves in particular: the same bits in the end."""
    command = [sys.executable, "tests/soak/kill_resume.py", *how, "--seed=1"]
    command += [f"--workdir={tmp_path / 'soak'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(ended.stdout)  # the log of the kills: shown where this fails, or with -s
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "bit-identical" in ended.stdout
    assert "DIFFERS" not in ended.stdout
