"""Runs of the table command with a tiny model, for test_tables.py and test_tuning.py."""

import csv
import hashlib
import json
from pathlib import Path

import jax.numpy as jnp

from sdfp import stages, table
from sdfp.types import UserError

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "tiny_config.py"
STAGES = ("further_pretrain", "self_distill", "finetune")

# From scratch, without pictures and events, and with one program for each loss in all of a
# file: compiling is nearly all of its time. The rate is high so that rows differ.
QUICK = [
    *("init.kind=scratch", "run.pictures=0", "run.tensorboard=false", "run.eval_batch_size=400"),
    *("run.log_every=4", "run.steps_per_call=2", "data.validation_fraction=0.2"),
    *("run.probe_every=0", "data.train_labels=20"),
    *(f"stages.{stage}.steps=4" for stage in STAGES),
    *("stages.finetune.augment=false", "stages.finetune.learning_rate=1e-2"),
    "method.mars.radius=0.2",
]
ARGUMENTS = ["--config", str(CONFIG), *(f"--config.{override}" for override in QUICK)]


def make(workdir, *arguments) -> int:
    return table.main([*ARGUMENTS, "--workdir", str(workdir), *arguments])


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def records(workdir):
    return {record["name"]: record for record in results(workdir)["stages"]}


def lines(workdir):
    with (workdir / "table.csv").open(newline="") as file:
        return {line["method"]: line for line in csv.DictReader(file)}


def snapshot(workdir):
    """Every file, with what is in it and when it was written."""
    files = [path for path in workdir.rglob("*") if path.is_file()]
    told = lambda path: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
    return {path.relative_to(workdir).as_posix(): told(path) for path in files}


def new_stages(workdir, before):
    """The stages that were trained since; what was there is as it was."""
    after, end = snapshot(workdir), "/final/manifest.json"
    assert all(after[path] == before[path] for path in before if path.startswith("stages/"))
    made = [path for path in after if path not in before and path.endswith(end)]
    return {path.removeprefix("stages/").removesuffix(end) for path in made}


def told(capsys) -> str:
    """The one line of a table that was refused or in part failed."""
    line, *others = capsys.readouterr().err.splitlines()
    assert others == []
    assert line.startswith("sdfp: ")
    return line.removeprefix("sdfp: ")


def watch(monkeypatch, broken):
    """The stages that are run or read from now on, in their order.

    Args:
        broken: stage name -> what is made of it in the stage's place.
    """
    seen = []

    def run_stage(stage, place, probe, run=stages.run_stage):
        seen.append(stage.name)
        return run(broken.get(stage.name, lambda stage: stage)(stage), place, probe)

    monkeypatch.setattr(stages, "run_stage", run_stage)
    return seen


def nan(stage):
    return stage._replace(loss_fn=nan_loss)


def nan_loss(params, frozen, batch, key):
    return {"cross_entropy": jnp.nan * batch["weight"]}


def bug(stage):
    raise ZeroDivisionError(f"of ours, in {stage.name}")


def interrupt(stage):
    raise KeyboardInterrupt


def note(stages):
    """Takes a stage down in `stages`, and has it fail before it costs anything."""

    def run(stage):
        stages[stage.name] = stage
        raise UserError("only looked at")

    return run
