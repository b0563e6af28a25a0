"""Runs that are killed, repeated, changed and damaged: real ones, with a tiny model."""

import csv
import gc
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
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
from sdfp.types import UserError

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "tiny_config.py"
FINETUNE = "finetune/self_distillation/seed_0"
STAGES = (
    "pretrain",
    "further_pretrain",
    "finetune/further_pretrain/seed_0",
    "self_distill_1",
    FINETUNE,
)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """What the processes below do too: XLA's optimisations are no matter of these tests, but
    the bits of the initial parameters, by which a stage is known, may depend on them."""
    jax.clear_caches()
    before = jax.config.jax_disable_most_optimizations
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture(autouse=True)
def few_crops(monkeypatch):
    monkeypatch.setattr(digits, "CROPS", 200)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """`python -m sdfp.main` on the tiny config; compiled programs are shared."""
    cache = tmp_path_factory.mktemp("cache")

    def start(workdir, *overrides, **environment):
        arguments = [f"--config={CONFIG}", f"--workdir={workdir}", *overrides]
        return subprocess.run(
            [sys.executable, "tests/tiny_process.py", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
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
        run(workdir, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


def final_digests(workdir):
    return {name: checkpoint.stored_digest(workdir / "stages" / name / "final") for name in STAGES}


def losses(workdir, name):
    lines = (workdir / "stages" / name / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "examples_per_second"} for x in lines]


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
    assert said.endswith("results.json\n")


def test_killed_once_in_every_kind_of_stage(finished, process, tmp_path):
    """SIGKILL around the writing of a checkpoint, the same command again, five times: the same
    bits, metrics and results as undisturbed."""
    work = tmp_path / "work"
    for death, going_on in [
        # The checkpoint is complete, the one before is still there.
        ("after pretrain/step_000000004/manifest.json", "pretrain: goes on after step 4 of 8"),
        # The arrays are there, the manifest is not: this one does not count.
        ("before further_pretrain/step_000000006/manifest.json", "pretrain: goes on after step 4"),
        ("after self_distill_1/step_000000002/manifest.json", "distill_1: goes on after step 2"),
        # All steps are done, the final parameters are incomplete.
        (f"before {FINETUNE}/final/manifest.json", f"{FINETUNE}: goes on after step 6 of 8"),
        # All stages are done, the results are not told.
        ("before results.json", f"{FINETUNE}: finished before"),
    ]:
        killed = process(work, DIE_AT=death)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (work / "results.json").exists()
        expected = going_on
        if "before results" not in death:
            stopped = work / "stages" / death.split()[1].rsplit("/", 2)[0]
            assert not checkpoint.exists(stopped / "final")
        del expected
    ended = process(work)
    assert ended.returncode == 0, ended.stderr
    assert final_digests(work) == final_digests(finished)
