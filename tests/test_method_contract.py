"""What every registered method has to keep, with every backbone. A new line of the registry is
tested without a change here. A sample is in the default suite, the others are slow."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import device_worker_methods as worker
import method_runs
import numpy as np
import pytest
from method_runs import ROWS, STEPS

from sdfp import checkpoint, experiment
from sdfp.rows import Row

SAMPLE = (  # one of each kind of change
    ("recadam", "vit"),  # an optimiser with an anchor
    ("prediction_matching", "vit"),  # a masked stage with a loss of its own, frozen parameters
    ("self_kd", "vit"),  # a teacher, in every step: its inputs are augmented
    ("r3f", "roberta"),  # a loss that perturbs
)
# A masked stage with a loss of its own is quick in test_ablations.py, which trains distill_only.
QUICK = tuple(pair for pair in SAMPLE if pair[0] != "prediction_matching")
SPREAD = ()  # over devices each program is compiled three times: all of them are slow
PAIRS = tuple((row, backbone) for backbone in method_runs.FILES for row in ROWS)
# What packing could disturb: a loss of its own over texts. The others differ from these as they do
# on images, where all of them are compared.
TEXT_LOSSES = ("self_distillation", "prediction_matching", "r3f", "self_kd")
DEVICE_PAIRS = tuple(pair for pair in PAIRS if pair[1] == "vit" or pair[0] in TEXT_LOSSES)


def contract(quick=QUICK, pairs=PAIRS):
    """Parametrises a test; those that are not quick are slow."""
    marks = lambda pair: () if pair in quick else pytest.mark.slow
    made = [pytest.param(*pair, id="-".join(pair), marks=marks(pair)) for pair in pairs]
    return pytest.mark.parametrize(("row", "backbone"), made)


class Finished(NamedTuple):
    """A row that was run with two seeds."""

    workdir: Path
    data: Path
    first: dict[str, Any]
    """The entry of results.json of the first seed."""
    second: dict[str, Any]
    seen: dict[str, method_runs.Trained]
    """All stages that were trained in this work directory so far, in their order."""


@pytest.fixture(scope="module")
def finish(tmp_path_factory):
    """(row, backbone) -> an undisturbed run. All rows of a backbone share a work directory, so
    that the stages which they share are trained once."""

    @functools.cache
    def place(backbone, precision):
        folder = tmp_path_factory.mktemp(f"{backbone}_{precision}")
        return method_runs.write_data(backbone, folder / "data"), folder / "work", {}

    @functools.cache
    def run(row, backbone, precision="float32"):
        data, workdir, seen = place(backbone, precision)
        made = method_runs.tiny(backbone, data, row)
        made.precision = precision
        # Its own second seed: of the masked stages, if there are any, else of fine-tuning.
        wish = experiment.CONFIG_ONLY
        if Row(row, experiment.parse(made)).pretrains:
            wish = experiment.Wish(pretrain_seeds=2)
        else:
            made.seeds = (0, 1)
        with method_runs.watched(seen):
            first, second = method_runs.run(made, workdir, wish)["results"]
        return Finished(workdir, data, first, second, seen)

    return run


def metrics(workdir: Path, stage: str) -> list[dict[str, float]]:
    lines = (workdir / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "examples_per_second"} for x in lines]


def params(workdir: Path, stage: str) -> dict[str, np.ndarray]:
    return checkpoint.flatten(checkpoint.restore(workdir / "stages" / stage / "final")[0])


def digests(workdir: Path, names: list[str]) -> dict[str, str]:
    final = lambda name: workdir / "stages" / name / "final"
    return {name: checkpoint.stored_digest(final(name)) for name in names}


# --- it learns


@contract()
def test_the_loss_falls(finish, row, backbone):
    """Of the objective as it is minimised: in every stage, and clearly in the row's own."""
    done = finish(row, backbone)
    *masked, finetuning = done.first["stages"]
    assert finetuning == done.first["stage"]
    own = finetuning if done.first["pretrain_seed"] is None else masked[-1]
    for stage in done.first["stages"]:
        losses = [line["loss"] for line in metrics(done.workdir, stage)]
        assert len(losses) >= STEPS
        start, end = np.mean(losses[:6]), np.mean(losses[-6:])  # two epochs each
        assert end < (0.98 if stage == own else 1.0) * start, stage


# --- its numbers keep their types and shapes


def check_types(done: Finished):
    for stage in done.first["stages"]:
        init = "teacher/init" if stage.startswith("teacher/") else "init"
        before, after = params(done.workdir, init), params(done.workdir, stage)
        if "finetune" in stage:
            before = {name: leaf for name, leaf in before.items() if name.startswith("encoder/")}
            assert {name.split("/")[0] for name in after} == {"encoder", "head"}
            head = {name: after.pop(name) for name in sorted(after) if name.startswith("head/")}
            assert {leaf.dtype for leaf in head.values()} == {np.dtype(np.float32)}
            assert len(method_runs.CLASSES) in {leaf.shape[-1] for leaf in head.values()}
        described = lambda found: {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()}
        assert described(after) == described(before), stage
        assert {leaf.dtype for leaf in after.values()} == {np.dtype(np.float32)}
        assert all(np.isfinite(leaf).all() for leaf in after.values())
        trained = done.seen[stage]
        for name, term in trained.terms.items():
            # One value per example: `train_step` would broadcast, or cast, any other in silence.
            assert term.shape == trained.weight.shape, (stage, name)
            assert term.dtype == np.float32, (stage, name)


@contract()
def test_types_and_shapes_are_kept(finish, row, backbone):
    check_types(finish(row, backbone))


@contract(quick=(), pairs=SAMPLE)
def test_types_are_kept_in_bfloat16(finish, row, backbone):
    check_types(finish(row, backbone, "bfloat16"))


# --- it compiles what it must


@contract()
def test_compilations(finish, row, backbone):
    """Each program once for each of its shapes: a single one for images, and for texts at most
    the three row counts of packing.py. A second seed has the first one's programs."""
    done = finish(row, backbone)
    for stage in done.first["stages"]:
        trained = done.seen[stage]
        assert 1 <= len(trained.calls) <= {"vit": 1, "roberta": 3}[backbone]
        # Of all the stages that share its program, whichever row brought them.
        sharing = [other for other in done.seen.values() if other.program is trained.program]
        shapes = set().union(*(other.calls for other in sharing))
        assert sum(other.compilations for other in sharing) == len(shapes), stage
    again = zip(done.first["stages"], done.second["stages"], strict=True)
    own = [(first, second) for first, second in again if first != second]
    assert own[-1] == (done.first["stage"], done.second["stage"])
    for first, second in own:
        assert done.seen[second].program is done.seen[first].program
        shapes = done.seen[first].calls | done.seen[second].calls
        assert len(shapes) <= {"vit": 1, "roberta": 3}[backbone]
        assert backbone == "roberta" or done.seen[second].compilations == 0


# --- interrupted, it goes on as if nothing had been


@contract()
def test_interrupted_and_run_again(finish, row, backbone, tmp_path, monkeypatch, capsys):
    """Each of its stages ten steps after its checkpoint: the same bits as undisturbed."""
    done = finish(row, backbone)
    made = method_runs.tiny(backbone, done.data, row)
    made.run.checkpoint_every = 10
    save, stopped = checkpoint.save_step, []

    def save_or_stop(directory, step, *rest):
        if step == 20 and directory not in stopped:
            stopped.append(directory)
            raise KeyboardInterrupt
        save(directory, step, *rest)

    monkeypatch.setattr(checkpoint, "save_step", save_or_stop)
    names = done.first["stages"]
    for stage in names:
        with pytest.raises(KeyboardInterrupt):
            method_runs.run(made, tmp_path)
        assert stopped[-1] == tmp_path / "stages" / stage
        state = checkpoint.flatten(checkpoint.restore(stopped[-1] / "step_000000010")[0])
        assert {str(leaf.dtype) for leaf in state.values()} == {"float32", "int32"}
    (entry,) = method_runs.run(made, tmp_path)["results"]
    said = capsys.readouterr().out
    assert all(f"{stage}: goes on after step 10 of " in said for stage in names)
    assert digests(tmp_path, names) == digests(done.workdir, names)
    assert all(metrics(tmp_path, stage) == metrics(done.workdir, stage) for stage in names)
    assert entry == done.first


# --- devices change nothing


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """(row, backbone) -> the folder of its runs on 1 and 2 devices: device_worker_methods.py. One
    process for the quick ones, and one for each backbone's other rows."""

    @functools.cache
    def start(*names):
        folder, here = tmp_path_factory.mktemp("devices"), Path(worker.__file__)
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", str(here), str(folder), *names],
            cwd=here.parents[1],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return folder

    def folder(row, backbone):
        slow = [pair for pair in DEVICE_PAIRS if pair not in SPREAD and pair[1] == backbone]
        group = SPREAD if (row, backbone) in SPREAD else slow
        return start(*map("/".join, group)) / backbone

    return folder


@contract(quick=SPREAD, pairs=DEVICE_PAIRS)
def test_devices_change_nothing(spread, row, backbone):
    """Parameters after an epoch: jit and pmap, 1 device and 2, without dropout."""
    folder = spread(row, backbone)
    results = json.loads((folder / "jit1" / "results.json").read_text())["results"]
    names = next(entry["stages"] for entry in results if entry["method"] == row)
    for stage in names:
        found = {layout: params(folder / layout, stage) for layout in worker.LAYOUTS}
        losses = [line["loss"] for line in metrics(folder / "jit1", stage)]
        assert len(set(losses)) == len(losses) >= worker.STEPS  # a training that moves
        for name, expected in found["jit1"].items():
            # Of a key's bias the gradient is 0 but for rounding, which AdamW makes larger.
            bound = 1e-3 if name.endswith("key/bias") else 1e-5
            size = max(np.abs(expected).max(), 0.1)
            for layout in ("jit2", "pmap2"):
                far = np.abs(found[layout][name] - expected).max()
                assert far <= bound * size, (stage, layout, name)
