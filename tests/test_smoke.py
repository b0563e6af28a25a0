"""Every config's `:smoke` variant, as its user runs it: one process, all stages, all rows."""

import html
import json
import os
import subprocess
import sys
from pathlib import Path

import data_helpers as on_disk
import jax
import jax.numpy as jnp
import pytest
import safetensors.numpy
import tiny_vit
from test_pretrained import CONFIG

from sdfp import checkpoint, config
from sdfp.data.registry import DATASETS
from sdfp.methods.registry import METHODS
from sdfp.models import vit_mae
from sdfp.models.registry import BACKBONES

ROOT = Path(__file__).parents[1]


def run(workdir, file, *overrides, **environment):
    arguments = [f"--config={file}", f"--workdir={workdir}", *overrides]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "sdfp.main", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((workdir / "results.json").read_text())


def check(workdir, output, results):
    assert [row.split()[1] for row in output.splitlines() if row.startswith("|")] == [
        "method",
        *["-" * 17],
        "finetune",
        "further_pretrain",
        "self_distillation",
    ]
    names = {stage["name"] for stage in results["stages"]}
    assert {"further_pretrain", "self_distill_1", "finetune/finetune/seed_1"} < names
    assert all(stage["steps"] == 2 for stage in results["stages"])
    assert (workdir / "stages/self_distill_1/reconstructions.png").exists()
    assert results["command"].startswith("cd ")
    assert " -m sdfp.main --config=configs/" in results["command"]
    assert results["command"] in html.unescape((workdir / "report.html").read_text())
    assert results["summary"]["self_distillation"]["accuracy"]["n"] == 2


def test_digits(tmp_path):
    output, results = run(tmp_path, "configs/digits.py:smoke")
    check(tmp_path, output, results)
    assert "pretrain" in {stage["name"] for stage in results["stages"]}


@pytest.mark.slow
def test_vit_folder(tmp_path):
    data = tmp_path / "data"
    on_disk.write_classes(data / "train", {"ill": 5, "well": 6})
    on_disk.write_classes(data / "test", {"ill": 2, "well": 3}, first=20)
    work = tmp_path / "work"
    where = (f"--config.data.dir={data}", f"--config.data.cache_dir={tmp_path / 'cache'}")
    output, results = run(work, "configs/vit_folder.py:smoke", *where)
    check(work, output, results)
    assert results["data"]["counts"] == {"train": 11, "unlabelled": 11, "validation": 0, "test": 5}


@pytest.mark.slow
@pytest.mark.real_data
def test_vit_cub(tmp_path, real_data):
    folder = real_data / "images/cub200_2011_first50classes_short112"
    where = (f"--config.data.dir={folder}", f"--config.data.cache_dir={tmp_path / 'cache'}")
    rows = ("--config.methods=further_pretrain", "--config.seeds=0,")  # `check` is of small sets
    _, results = run(tmp_path / "work", "configs/vit_cub.py:smoke", *where, *rows)
    names = [stage["name"] for stage in results["stages"]]
    assert names == ["further_pretrain", "finetune/further_pretrain/seed_0"]
    counts = results["data"]["counts"]
    assert (counts["train"], counts["test"], results["data"]["classes"]) == (1500, 1389, 50)


@pytest.mark.slow
@pytest.mark.real_data
def test_vit_cifar100(tmp_path, real_data):
    """Its images are enlarged within the step, and the label budget is cut."""
    folder = real_data / "images/cifar100_subset"
    where = (f"--config.data.dir={folder}", "--config.data.image_size=40")
    more = ("--config.model.image_size=40", "--config.methods=self_distillation")
    output, results = run(tmp_path, "configs/vit_cifar100.py:smoke", *where, *more)
    counts = results["data"]["counts"]
    assert (counts["train"], counts["unlabelled"], counts["test"]) == (1000, 1000, 5000)
    assert "it has 50000 train and 10000 test images, here are 5000 and 5000" in output


VIT = {path.name for path in (ROOT / "configs").glob("vit_*.py")} - {"vit_source.py"}


@pytest.mark.parametrize("file", sorted(VIT))
@pytest.mark.parametrize("variant", ["", ":smoke"])
def test_configs_are_whole(file, variant):
    values = config.read(f"{ROOT}/configs/{file}{variant}")
    families = {name: family.settings for name, family in BACKBONES.items()}
    methods = {name: method.settings for name, method in METHODS.items()}
    settings = config.parse(values, families, methods)
    assert settings.data.name == file[4:-3].replace("folder", "image_folder")
    assert settings.data.name in DATASETS
    assert settings.data.image_size == settings.model.image_size == (32 if variant else 224)
    assert settings.stages.finetune.steps == (2 if variant else 10_000)


@pytest.mark.slow
def test_everything_that_can_be_switched(tmp_path):
    """Weights of another image size, two rounds, all tokens, bf16, pmap, micro-batches."""
    backbone = vit_mae.make(tiny_vit.settings(), jnp.float32)
    source = jax.device_get(backbone.init(jax.random.key(5)))
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text(json.dumps(CONFIG))
    safetensors.numpy.save_file(backbone.to_torch(source), weights / "model.safetensors")
    on_disk.write_classes(tmp_path / "data", {"ill": 9, "well": 12})
    output, results = run(
        tmp_path / "work",
        "configs/vit_folder.py:smoke",
        f"--config.data.dir={tmp_path / 'data'}",
        "--config.data.cache_dir=",
        "--config.data.test_fraction=0.3",
        "--config.init.kind=weights",
        f"--config.init.weights={weights}",
        "--config.methods=self_distillation",
        "--config.method.self_distillation.rounds=2",
        "--config.method.self_distillation.features=all",
        "--config.stages.self_distill.accumulate=2",
        "--config.precision=bfloat16",
        "--config.parallel.backend=pmap",
        JAX_NUM_CPU_DEVICES="2",
    )
    assert "Weights:" in output
    assert "resized" in output
    assert results["model"]["dim"] == 16  # the file's, not the config's
    records = {record["name"]: record for record in results["stages"]}
    assert (
        records["self_distill_1"]["teacher_digest"]
        == (records["further_pretrain"]["encoder_digest"])
    )
    assert (
        records["self_distill_2"]["teacher_digest"] == (records["self_distill_1"]["encoder_digest"])
    )
    started, _ = checkpoint.restore(tmp_path / "work/stages/init/final")
    loaded = started["encoder"]["blocks"]["query"]["kernel"]
    assert (loaded == source["encoder"]["blocks"]["query"]["kernel"]).all()
