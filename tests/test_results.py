"""results.json while a run goes on: what an earlier run left is kept until it is made again."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdfp import checked, config, experiment
from sdfp.results import Results

CONFIG = str(Path(__file__).with_name("tiny_config.py"))


def run(workdir, teachers, **more):
    """Of a context as far as `write` looks at it."""
    settings = experiment.parse(config.read(CONFIG, []))
    context = SimpleNamespace(
        settings=settings,
        model=settings.model,
        place=SimpleNamespace(workdir=workdir, devices=SimpleNamespace(count=1)),
        precision=SimpleNamespace(name="float32"),
        facts={"data": {}, **({"teachers": teachers} if teachers else {})},
        records={},
    )
    return Results(context, {"kind": "scratch"}, **more)


@pytest.mark.parametrize("complete", [False, True])
def test_teachers(tmp_path, complete):
    """Of rows that it has not come to yet those of the run before; in the end its own alone."""
    known = {name: {"kind": "weights", "path": "before"} for name in ("a", "b")}
    now = run(tmp_path, {"b": {"kind": "scratch"}}, earlier={"teachers": known})
    now.write(complete)
    found = checked.read_results(tmp_path / "results.json")
    before = {} if complete else {"a": known["a"]}
    assert found["teachers"] == {**before, "b": {"kind": "scratch"}}


def test_how_many_pretraining_seeds(tmp_path):
    """As asked for: what is lacking of them can be told before there is any."""
    for asked in (1, 3):
        run(tmp_path, {}, pretrain_seeds=asked).write(complete=False)
        found = json.loads((tmp_path / "results.json").read_text())
        assert (found["pretrain_seeds"], found["teachers"]) == (asked, {})
