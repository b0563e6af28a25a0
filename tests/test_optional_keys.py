"""A results.json that lacks what an older version did not write: every tool reads it."""

import json

import pytest
from comparison_results import entry, results, saved
from page_helpers import record

from sdfp import checked, figure, rendering
from sdfp.page import document

FURTHER, DISTILLED = "further_pretrain", "self_distillation"
START = {"kind": "weights", "path": "x", "digest": "d", "notes": ["resized"]}
START |= {name: ["a"] for name in ("loaded", "initialised", "left_out")}


def whole(number):
    """A results.json with every key that there is; `number` is what it differs in from others."""
    entries, made = [], []
    for method, stages in {"finetune": [], FURTHER: [FURTHER], DISTILLED: [FURTHER]}.items():
        for seed in range(2):
            cell = entry(method, seed, 50.0 + seed, 0 if stages else None)
            cell |= {"train_accuracy": 60.0, "validation_loss": 1.0}
            entries.append(cell | {"stages": [*stages, cell["stage"]]})
    for name in (FURTHER, *(cell["stage"] for cell in entries)):
        digests = dict.fromkeys(("encoder_digest", "key", "warning"), "x")
        made.append(record(name, 10 * number, test_masked_loss=0.5, **digests))
    candidate = {"settings": {}, "values": [1.0], "mean": 1.0, "errors": ["x"]}
    tuned = {"split": "test", "metric": "accuracy", "candidates": [candidate], "chosen": 0}
    data = {"classes": 2, "counts": {"train": 8 * number, "test": 4}, "remarks": ["x"]}
    data |= {"broken": {"a": "b"}, "held_out": {"test": "ab"}}
    failure = {"method": "mars", "seed": 1, "error": "why", "ours": False}
    found = results(
        entries,
        stages=made,
        tuning={"finetune": tuned},
        failed=[failure | {"pretrain_seed": None, "varied": {}}],
        init=START,
        teachers={"teacher/init": START},
        data=data,
        source=data,
        pretrain_seeds=1,
        **{name: {"x": "y"} for name in ("model", "versions", "summary")},
        **dict.fromkeys(("precision", "command"), "x"),
    )
    config = {"data": {"name": "digits"}, "init": {"kind": "weights"}, "run": {"pictures": 1}}
    config |= {"method": {DISTILLED: {"rounds": number}}, "stages": {FURTHER: {"steps": 10}}}
    found["config"] |= config
    return found


def optional(shape, at=()):
    """The place of every key with a question mark; "*" for each element of a list or an object."""
    if isinstance(shape, list):
        yield from optional(shape[0], (*at, "*"))
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            name = "*" if key is str else key.removesuffix("?")
            if key is not str and key.endswith("?"):
                yield (*at, name)
            yield from optional(inner, (*at, name))


def drop(found, place):
    """Removes a key wherever it is. Returns how often."""
    step, *rest = place
    if step == "*":
        inner = found if isinstance(found, list) else found.values()
        return sum(drop(each, rest) for each in inner)
    if rest:
        return drop(found[step], rest)
    del found[step]
    return 1


PLACES = list(optional(checked.RESULTS))
MEASURED = {
    # Each figure cannot do without what it is of.
    ("results",): {1, 3, 4, 5},
    ("stages",): {1},
    ("stages", "*", "steps"): {1},
    ("results", "*", "stages"): {1},
    ("results", "*", "pretrain_seed"): {1},
    ("data",): {3},
    ("data", "counts"): {3},
    ("config", "method"): {4, 5},
    ("results", "*", "distance"): {5},
    ("results", "*", "train_loss"): {5},
    ("results", "*", "test_loss"): {5},
}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Other tests look at pictures; this one makes hundreds."""
    monkeypatch.setattr(figure.drawing, "METADATA", {})
    monkeypatch.setattr(figure.drawing, "inline", lambda drawn, name: "")


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_without_it(tmp_path, capsys, place):
    workdirs = []
    for number in (1, 2):
        found = json.loads(json.dumps(whole(number)))  # a copy in which nothing is shared
        assert drop(found, place) > 0
        workdirs.append(saved(tmp_path / str(number), found))
        assert "<h2>Stages</h2>" in document.html(workdirs[-1])
        rendering.write(workdirs[-1:], tmp_path / "one")
    assert "finetune" in rendering.write(workdirs, tmp_path / "several") or place == ("results",)
    capsys.readouterr()
    refused = set()
    for number in figure.AXES:
        arguments = [str(number), "--workdir", *map(str, workdirs), "--out", str(tmp_path)]
        if figure.main(arguments):
            refused.add(number)
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("sdfp: ")
    assert refused == MEASURED.get(place, set())


def test_the_places():
    """None is left out above, and none is named that there is not."""
    assert len(PLACES) == len(set(PLACES)) > 50
    assert MEASURED.keys() <= set(PLACES)
    assert checked.misfit(whole(1), checked.RESULTS) == ""
