"""Arguments of the table command: what is refused, and --tune, its grid and its choice."""

import dataclasses
import json
import shutil
from typing import ClassVar

import numpy as np
import pytest
from table_runs import (
    ARGUMENTS,
    CONFIG,
    bug,
    interrupt,
    lines,
    make,
    nan,
    new_stages,
    note,
    results,
    snapshot,
    told,
    watch,
)

from sdfp import config, table
from sdfp.methods import mars, r3f
from sdfp.methods.interface import NoSettings
from sdfp.settings import choice, number
from sdfp.types import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    TEACHER_ONLY: ClassVar = ("text",)
    whole: int = number(1, 9)
    real: float = number(above=0, below=1)
    switch: bool
    text: str
    kind: str = choice("one", "two")


KNOWN = {"every": Every, "nothing": NoSettings, "mars": mars.Settings, "r3f": r3f.Settings}


def parse_grid(*texts):
    return config.parse_grid(texts, KNOWN)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("every.whole=3,1", (3, 1)),
        ("every.real=1e-3,0.5", (1e-3, 0.5)),
        ("mars.radius=8", (8.0,)),
        ("every.switch=true,False", (True, False)),
        ("every.text=a,/b/c=d", ("a", "/b/c=d")),
        ("every.kind=two,one", ("two", "one")),
    ],
)
def test_grid(text, values):
    (found,) = parse_grid(text).values()
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("mars.radus=1", '--tune mars.radus: no such setting. Did you mean "mars.radius"?'),
        ("radius=1", '--tune radius: no such setting. Did you mean "mars.radius"?'),
        ("nothing.at=1", "--tune nothing.at: no such setting."),
        ("mars=1", "--tune mars: no such setting."),
        ("every.TEACHER_ONLY=text", "--tune every.TEACHER_ONLY: no such setting."),
        ("every.whole=1,2.5", "--tune every.whole: int is expected; got '2.5'"),
        ("every.whole=0", "--tune every.whole: must be at least 1; got 0"),
        ("every.whole=10", "--tune every.whole: must be at most 9; got 10"),
        ("every.real=0.1,1", "--tune every.real: must be below 1; got 1.0"),
        ("every.real=0", "--tune every.real: must be above 0; got 0.0"),
        ("every.real=nan", "--tune every.real: a finite number is expected; got nan"),
        ("every.real=x", "--tune every.real: float is expected; got 'x'"),
        ("every.switch=1", "--tune every.switch: bool is expected; got '1'"),
        ("every.kind=tow", "--tune every.kind: 'tow' is none of one, two. Did you mean \"two\"?"),
        ("every.real=", "--tune every.real: float is expected; got ''"),
        ("every.real", "--tune every.real: float is expected; got ''"),
        ("every.real=0.1,", "--tune every.real: float is expected; got ''"),
        ("every.real=0.5,0.50", "--tune every.real: give each value once; got 0.5,0.50"),
    ],
)
def test_grid_mistakes(text, line):
    with pytest.raises(UserError) as caught:
        parse_grid(text)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_setting_that_is_given_twice():
    with pytest.raises(UserError, match=r"--tune mars\.radius: given twice; join the values by"):
        parse_grid("mars.radius=1", "r3f.noise=normal", "mars.radius=2")
    found = parse_grid("mars.radius=1,2", "r3f.noise=uniform")
    assert found == {"mars.radius": (1.0, 2.0), "r3f.noise": ("uniform",)}


GRID = ("--methods", "finetune,mars", "--tune", "mars.radius=0.01,0.2")
CANDIDATES = ("mars@radius=0.01", "mars")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A work directory with a search in it, with two seeds. Not to be changed."""
    workdir = tmp_path_factory.mktemp("tuned") / "work"
    assert make(workdir, *GRID, "--seeds", "2") == 0
    return workdir


@pytest.fixture
def workdir(tuned, tmp_path):
    """A copy of it without the candidates' first seeds."""
    workdir = shutil.copytree(tuned, tmp_path / "work")
    for name in CANDIDATES:
        shutil.rmtree(workdir / f"stages/finetune/{name}/seed_0")
    return workdir


@pytest.fixture
def broken():
    """Stage name -> what is made of it in the stage's place."""
    return {}


@pytest.fixture
def trained(monkeypatch, broken):
    """The stages that are run or read, in their order."""
    return watch(monkeypatch, broken)


def test_tuning_takes_the_best_on_the_validation_part(tuned):
    found = results(tuned)
    tuning, folders = found["tuning"]["mars"], [tuned / "stages/finetune" / n for n in CANDIDATES]
    read = lambda path: json.loads(path.read_text())["metrics"]["accuracy"]
    means = []
    for shown, folder, radius in zip(tuning["candidates"], folders, (0.01, 0.2), strict=True):
        scores = [read(folder / f"seed_{s}/validation/evaluation.json") for s in (0, 1)]
        means.append(np.mean(scores))
        assert shown.pop("errors") == []
        assert shown == {"settings": {"mars.radius": radius}, "values": scores, "mean": means[-1]}
    assert (tuning["split"], tuning["metric"]) == ("validation", "accuracy")
    assert tuning["chosen"] == int(np.argmax(means))
    assert means[0] != means[1]  # else any choice would do
    winner, loser = (folders[i] for i in (tuning["chosen"], 1 - tuning["chosen"]))
    for seed in (0, 1):
        # The reported split was not looked at for a choice.
        assert (winner / f"seed_{seed}/evaluation.json").exists()
        assert not (loser / f"seed_{seed}/evaluation.json").exists()
        assert not (loser / f"seed_{seed}/predictions.csv").exists()
    entries = [entry for entry in found["results"] if entry["method"] == "mars"]
    for seed, entry in enumerate(entries):
        assert entry["stage"] == f"finetune/{winner.name}/seed_{seed}"
        assert entry["split"] == "test"
        assert entry["value"] == read(winner / f"seed_{seed}/evaluation.json")
    chosen = tuning["candidates"][tuning["chosen"]]["settings"]["mars.radius"]
    varied = {} if chosen == 0.2 else {"mars.radius": chosen}
    assert [entry["varied"] for entry in entries] == [varied] * 2
    name = f"radius={chosen}" if varied else "the config's own"
    note = f"- Settings chosen for mars: {name} (validation split, 2 candidates)."
    assert note in (tuned / "table.md").read_text()
    assert lines(tuned)["mars"]["settings"] == (name if varied else "")


def test_tuning_again_trains_nothing(tuned, tmp_path):
    work = shutil.copytree(tuned, tmp_path / "work")
    before = snapshot(work)
    assert make(work, *GRID, "--seeds", "2") == 0
    assert new_stages(work, before) == set()
    assert results(work) == results(tuned)
    # The candidate that is the config's own is the plain row.
    assert make(work, "--methods", "finetune,mars", "--seeds", "2") == 0
    assert new_stages(work, before) == set()
    assert results(work)["tuning"] == {}
    rows = [f"finetune/{name}/seed_{seed}" for name in ("finetune", "mars") for seed in (0, 1)]
    assert [entry["stage"] for entry in results(work)["results"]] == rows


NAN = "finetune/mars@radius=0.01/seed_0: loss is not finite at step 1. Try a lower"


def test_a_candidate_that_fails_is_out(workdir, trained, broken, capsys):
    """Although its other seed is there and the best of all."""
    broken["finetune/mars@radius=0.01/seed_0"] = nan
    assert make(workdir, *GRID, "--seeds", "2") == 0
    assert capsys.readouterr().err == ""
    found = results(workdir)
    first, second = found["tuning"]["mars"]["candidates"]
    assert (first["values"][0], first["mean"]) == (None, None)
    assert first["values"][1] is not None
    assert [error.startswith(NAN) for error in first["errors"]] == [True]
    assert (None in second["values"], second["errors"]) == (False, [])
    assert (found["tuning"]["mars"]["chosen"], found["failed"], found["complete"]) == (1, [], True)
    text = (workdir / "table.md").read_text()
    assert f"- mars: 1 of 2 candidates failed and was out: radius=0.01: {NAN}" in text
    assert lines(workdir)["mars"]["failed"] == "0"


def test_a_candidate_that_fails_by_a_bug_does_not_pass_unseen(workdir, trained, broken, capsys):
    broken["finetune/mars@radius=0.01/seed_0"] = bug
    with pytest.raises(RuntimeError, match=r"1 failed, .*; mars, seed 0: of ours"):
        make(workdir, *GRID)
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    found = results(workdir)
    (failed,) = found["failed"]
    assert (failed["varied"], failed["seed"], failed["ours"]) == ({"mars.radius": 0.01}, 0, True)
    assert found["tuning"]["mars"]["chosen"] == 1
    assert [entry["method"] for entry in found["results"]] == ["finetune", "mars"]
    assert lines(workdir)["mars"]["failed"] == "0"


def test_a_row_all_of_whose_candidates_fail(workdir, trained, broken, capsys):
    """It is one failure, of the row; the other rows are there."""
    broken.update({f"finetune/{name}/seed_0": nan for name in CANDIDATES})
    assert make(workdir, *GRID, "--seeds", "2") == 2
    error = f"all candidates failed, one of them: {NAN}"
    assert told(capsys).startswith(f"1 failed, the others are in the results; mars: {error}")
    found = results(workdir)
    (failed,) = found["failed"]
    assert failed.pop("error").startswith(error)
    expected = {"method": "mars", "varied": {}, "pretrain_seed": None, "seed": None, "ours": False}
    assert failed == expected
    assert found["tuning"]["mars"]["chosen"] is None
    assert [len(one["errors"]) for one in found["tuning"]["mars"]["candidates"]] == [1, 1]
    assert [entry["method"] for entry in found["results"]] == ["finetune"] * 2
    assert found["complete"] is True
    assert (lines(workdir)["mars"]["n"], lines(workdir)["mars"]["failed"]) == ("0", "2")


def test_a_bug_among_candidates_that_all_fail(workdir, trained, broken):
    for name, how in zip(CANDIDATES, (nan, bug), strict=True):
        broken[f"finetune/{name}/seed_0"] = how
    with pytest.raises(RuntimeError):
        make(workdir, *GRID)


def test_interrupted_after_another_choice(workdir, trained, broken):
    """A row's scores are all of the same settings."""
    found = results(workdir)
    for entry in found["results"]:
        if entry["method"] == "mars":
            entry["varied"] = {"mars.radius": 9.0}
            entry["stage"] = f"finetune/mars@radius=9.0/seed_{entry['seed']}"
    (workdir / "results.json").write_text(json.dumps(found))
    shutil.rmtree(workdir / "stages/finetune/finetune/seed_0")
    broken["finetune/mars/seed_1"] = interrupt
    assert make(workdir, "--methods", "finetune,mars", "--seeds", "2") == 130
    found = [entry for entry in results(workdir)["results"] if entry["method"] == "mars"]
    assert [entry["varied"] for entry in found] == [{}] * len(found)


def test_tuning_is_repeated_on_the_command_line(workdir, trained, broken):
    seen = {}
    radii, heads = (0.01, 0.2), (8.0, 16.0)
    names = ["mars@head_radius=8.0,radius=0.01", "mars@head_radius=8.0", "mars@radius=0.01", "mars"]
    broken.update({f"finetune/{name}/seed_0": note(seen) for name in names})
    tune = ("--tune", "mars.radius=0.01,0.2", "--tune", "mars.head_radius=8,16")
    assert make(workdir, "--methods", "finetune,mars", *tune) == 2
    assert list(seen) == [f"finetune/{name}/seed_0" for name in names]
    told = [one["settings"] for one in results(workdir)["tuning"]["mars"]["candidates"]]
    assert told == [{"mars.head_radius": h, "mars.radius": r} for h in heads for r in radii]


def test_tuning_needs_a_validation_part(tmp_path, trained, capsys):
    assert make(tmp_path / "work", *GRID, "--config.data.validation_fraction=0") == 2
    assert told(capsys).startswith("--tune: there is no validation split; cut one with --config.")
    assert trained == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--config: give a config file, e.g. configs/digits.py; or --from"),
        *(
            (["--from", "a", *given], f"--from joins what is there; leave {given[0]} out")
            for given in (
                *(["--config", CONFIG], ["--methods", "mars"], ["--seeds", 1], ["--workdir", "b"]),
                *(["--tune", "mars.radius=1"], ["--pretrain_seeds", 1], ["--list"]),
                ["--config.seed=1"],
            )
        ),
        ([*ARGUMENTS, "--out", "a"], "--out is for --from: a run's table goes to its work dir"),
        (["--from", "/nowhere"], "/nowhere: no results.json there"),
        ([*ARGUMENTS, "--seeds", "0"], "--seeds: at least 1; got 0"),
        ([*ARGUMENTS, "--pretrain_seeds", "0"], "--pretrain_seeds: at least 1; got 0"),
        ([*ARGUMENTS, "--methods", "mrs"], "config.methods: 'mrs' is none of "),
        ([*ARGUMENTS, "--tune", "mars.radus=1"], "--tune mars.radus: no such setting. Did you"),
        ([*ARGUMENTS, "--tune", "mars.radius=1"], "--tune mars.radius: no row of config.methods"),
        ([*ARGUMENTS, "--config.stages.finetune.stepz=1"], "--config.stages.finetune.stepz: no"),
        ([*ARGUMENTS, "--noconfig.run.tensorbord"], "--config.run.tensorbord: no such key."),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, trained, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert table.main([str(argument) for argument in arguments]) == 2
    assert told(capsys).startswith(line)
    assert (trained, list(tmp_path.iterdir())) == ([], [])
