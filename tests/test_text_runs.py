"""Runs on texts, as their user starts them: configs, all stages, bad input, interruption."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import text_helpers as on_disk
import tiny_roberta

from sdfp import checkpoint, config, experiment, hub_folder
from sdfp.data.tokenizer import train_tokenizer
from sdfp.methods.registry import METHODS
from sdfp.models import roberta, roberta_export
from sdfp.models.interface import Card
from sdfp.models.registry import BACKBONES
from sdfp.types import UserError

ROOT = Path(__file__).parents[1]
WORDS = [
    "the",
    "model",
    "learns",
    "from",
    "few",
    "labelled",
    "texts",
    "and",
    "a",
    "teacher",
    "that",
    "stays",
    "near",
    "its",
    "start",
]
SENTENCES = [" ".join(random.Random(n).choices(WORDS, k=4 + n % 9)) for n in range(60)]
LABELS = ("cause", "effect", "none")


def run(workdir, file, *overrides, **environment):
    arguments = [f"--config={ROOT / 'configs' / file}", f"--workdir={workdir}", *overrides]
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


def run_here(workdir, file, *overrides):
    """In this process: compiled programs are shared with the other tests."""
    return experiment.run(config.read(str(ROOT / "configs" / file), overrides), workdir)


def rows(start=0, count=30, labels=LABELS):
    return [(SENTENCES[n % 60] + f" {n}", labels[n % len(labels)]) for n in range(start, count)]


@pytest.fixture
def folder(tmp_path):
    """A user's data: two of the six test texts are in train."""
    on_disk.write_jsonl(tmp_path / "data/train.jsonl", rows())
    on_disk.write_jsonl(tmp_path / "data/test.jsonl", rows(28, 34))
    return tmp_path / "data"


# --- configs

TEXTS = {"scierc": 3219, "acl_arc": 1688, "chemprot": 4169, "twitter_emotion": 3257, "file": 2000}


@pytest.mark.parametrize("name", TEXTS)
def test_recipes(name):
    """100 epochs of 128 and 10 of 32, each epoch with its last, smaller batch."""
    parsed = config.parse(
        config.read(str(ROOT / f"configs/roberta_{name}.py")),
        {family: entry.settings for family, entry in BACKBONES.items()},
        {method: entry.settings for method, entry in METHODS.items()},
    )
    stages, texts = parsed.stages, TEXTS[name]
    assert stages.further_pretrain == stages.self_distill
    assert (stages.self_distill.batch_size, stages.finetune.batch_size) == (128, 32)
    assert stages.self_distill.steps == 100 * ((texts + 127) // 128)
    assert stages.finetune.steps == 10 * ((texts + 31) // 32)
    assert abs(stages.finetune.warmup_steps / stages.finetune.steps - 0.06) < 0.001
    assert (parsed.model.mask_id, parsed.model.vocab_size) == (50264, 50265)
    assert parsed.data.tokenizer == parsed.init.weights == "FacebookAI/roberta-base"
    assert parsed.data.name == {"file": "text_file"}.get(name, name)


def test_the_tokenizer_follows_the_weights_unless_it_is_given():
    file = str(ROOT / "configs/roberta_scierc.py")
    read = config.read(file, ["--config.init.weights=/a"])
    assert (read.data.tokenizer, read.source.tokenizer) == ("/a", "/a")
    read = config.read(file, ["--config.data.tokenizer=/b"])
    assert (read.data.tokenizer, read.init.weights) == ("/b", "FacebookAI/roberta-base")


# --- whole runs


@pytest.mark.slow
def test_everything_that_can_be_switched(tmp_path):
    """Weights and tokenizer of a folder, two rounds, all tokens, bf16, pmap, micro-batches."""
    for name, start in (("train", 0), ("dev", 60), ("test", 70)):
        table = [f"{label}\t{text}" for text, label in rows(start, start + 30)]
        on_disk.write(tmp_path / f"data/{name}.tsv", "\n".join(["kind\tabstract", *table]) + "\n")
    on_disk.write(tmp_path / "data/unlabelled.txt", "\n".join(SENTENCES) + "\n")
    write_weights(tmp_path / "weights")
    output, results = run(
        tmp_path / "work",
        "roberta_file.py:smoke",
        f"--config.data.dir={tmp_path / 'data'}",
        "--config.data.text_column=abstract",
        "--config.data.label_column=kind",
        "--config.data.max_length=18",
        "--config.init.kind=weights",
        f"--config.init.weights={tmp_path / 'weights'}",
        "--config.methods=self_distillation",
        "--config.method.self_distillation.rounds=2",
        "--config.method.self_distillation.features=all",
        "--config.stages.self_distill.accumulate=2",
        "--config.precision=bfloat16",
        "--config.parallel.backend=pmap",
        "--config.evaluate_on=validation",
        JAX_NUM_CPU_DEVICES="2",
    )
    assert "Weights:" in output
    assert results["model"]["dim"] == 16  # the file's, not the config's
    assert results["data"]["counts"] == {
        "train": 30,
        "unlabelled": 60,
        "validation": 30,
        "test": 30,
    }
    records = {record["name"]: record for record in results["stages"]}
    teacher = records["self_distill_2"]["teacher_digest"]
    assert teacher == records["self_distill_1"]["encoder_digest"]
    assert records["self_distill_2"]["validation_masked_loss"] > 0
    entry = results["results"][0]
    assert (entry["metric"], entry["split"]) == ("macro_f1", "validation")
    assert entry["value"] == entry["macro_f1"]
    assert entry["micro_f1"] == pytest.approx(entry["accuracy"])
    pictures = (tmp_path / "work/stages/self_distill_2/reconstructions.txt").read_text()
    assert pictures.count("\noriginal: ") == 4
    assert pictures.count("<mask>") > 1


def write_weights(folder):
    """What a hub folder holds: 16 dimensions, a tokenizer of 300 entries."""
    opened = train_tokenizer(SENTENCES * 2, 280)
    settings = tiny_roberta.settings(vocab_size=280, mask_id=279)
    backbone = roberta.make(settings, jnp.float32)
    made = {
        "kind": "text",
        "max_length": 18,
        "vocab_size": 280,
        "special": dict(opened.special),
        "tokenizer": json.loads(opened.files["tokenizer.json"]),
    }
    params = jax.device_get(backbone.init(jax.random.key(5)))
    hub_folder.write_folder(folder, roberta_export.export(params, Card(settings, made, ())))


def test_chemprot(tmp_path):
    """13 classes, of which dev and test lack one each; micro-F1 heads the table."""
    classes = [f"RELATION-{n}" for n in range(13)]
    data = tmp_path / "chemprot"
    for name, count, kinds in (
        ("train", 52, classes),
        ("dev", 24, classes[:-1]),
        ("test", 36, classes[1:]),
    ):
        texts = [(f"[[ {text} ]] and << {name} >>", label) for text, label in rows(0, count, kinds)]
        on_disk.write_jsonl(data / f"{name}.txt", texts, metadata=[0, 1, 2, 3])
    results = run_here(
        tmp_path / "work",
        "roberta_chemprot.py:smoke",
        f"--config.data.dir={tmp_path}",
        *("--config.methods=finetune", "--config.seeds=0,", "--config.model.depth=1"),
    )
    assert results["data"]["classes"] == 13
    assert results["data"]["published"] == (4169, 3469)
    assert {entry["metric"] for entry in results["results"]} == {"micro_f1"}
    assert {"accuracy", "micro_f1", "macro_f1"} < results["summary"]["finetune"].keys()


@pytest.mark.slow
@pytest.mark.real_data
def test_acl_arc(tmp_path, real_data):
    """The texts that train and test share are told, and are in results.json."""
    output, results = run(
        tmp_path,
        "roberta_acl_arc.py:smoke",
        f"--config.data.dir={real_data / 'text'}",
        "--config.methods=finetune",
        "--config.seeds=0,",
    )
    assert "data: 52 test texts are in train too, character for character" in output
    assert results["data"]["test_texts_in_train"] == 52
    assert results["data"]["counts"]["test"] == 139
    assert results["results"][0]["metric"] == "macro_f1"


@pytest.mark.slow
def test_texts_without_labels(tmp_path, capsys):
    """The masked stages only."""
    on_disk.write(tmp_path / "data/train.txt", "\n".join(SENTENCES) + "\n")
    results = run_here(
        tmp_path / "work",
        "roberta_file.py:smoke",
        f"--config.data.dir={tmp_path / 'data'}",
        *("--config.methods=further_pretrain", "--config.model.depth=1"),
    )
    assert "further_pretrain: no labels here, so no fine-tuning" in capsys.readouterr().out
    assert [stage["name"] for stage in results["stages"]] == ["further_pretrain"]
    assert results["results"] == []


@pytest.mark.slow  # test_resume.py has it of images
def test_interrupted_and_run_again(folder, tmp_path, monkeypatch):
    """Stopped within each of two stages, the same bits come out."""
    overrides = [
        f"--config.data.dir={folder}",
        "--config.methods=further_pretrain",
        "--config.seeds=0,",
        *(f"--config.stages.{stage}.steps=6" for stage in ("further_pretrain", "finetune")),
        *("--config.run.checkpoint_every=4", "--config.run.probe_every=0"),
        *("--config.run.pictures=0", "--noconfig.run.tensorboard", "--noconfig.run.masked_loss"),
        *(f"--config.model.{size}" for size in ("depth=1", "dim=16", "mlp_dim=16")),
    ]
    whole = run_here(tmp_path / "whole", "roberta_file.py:smoke", *overrides)
    save = checkpoint.save_step

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_step", save_and_stop)
    for _ in range(2):  # after step 4 of each stage
        with pytest.raises(KeyboardInterrupt):
            run_here(tmp_path / "cut", "roberta_file.py:smoke", *overrides)
    cut = run_here(tmp_path / "cut", "roberta_file.py:smoke", *overrides)
    digests = lambda results: [stage["digest"] for stage in results["stages"]]
    assert digests(cut) == digests(whole)
    assert cut["results"][0]["value"] == whole["results"][0]["value"]


# --- a user's mistakes: one line


def refused(folder, tmp_path, *overrides, file="roberta_file.py:smoke"):
    with pytest.raises(UserError) as caught:
        run_here(tmp_path / "work", file, f"--config.data.dir={folder}", *overrides)
    line = str(caught.value)
    assert "\n" not in line
    assert not (tmp_path / "work/stages/further_pretrain").exists()
    return line


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("--config.data.max_length=129",), "config.data.max_length: must be at most 128"),
        (("--config.data.vocab_size=262",), "config.data.tokenizer: it has 262 entries, the model"),
        (("--config.data.tokenizer=/none",), "/none: no such"),
        (("--config.data.text_column=body",), "no key 'body'"),
        (("--config.data.name=cub",), "config.data.name: config.model cannot read cub; it can"),
        (("--config.data.name=cubs",), "config.data.name: 'cubs' is none of"),
        (("--config.data.source=tfds",), "config.data.source: tfds is for"),
        (("--config.stages.finetune.augment=True",), "augment: texts have no augmentation"),
        (("--config.evaluate_on=validation",), "--config.data.validation_fraction=0.2"),
        (("--config.data.validation_fraction=0.99",), "leaves one part empty"),
        (("--config.data.test_fraction=0.2",), "the data set has its own test split"),
        (("--config.data.train_labels=2",), "must be at least the 3 classes"),
        (("--config.stages.further_pretrain.frozen=pos_embed",), "no parameter is called"),
        (("--config.model.heads=3",), "must be a multiple of config.model.heads"),
    ],
)
def test_settings_that_do_not_fit(folder, tmp_path, overrides, told):
    assert told in refused(folder, tmp_path, *overrides)


def test_a_set_of_texts_for_a_model_of_images(folder, tmp_path):
    told = refused(folder, tmp_path, "--config.data.name=text_file", file="vit_folder.py:smoke")
    assert told.startswith("config.data.name: config.model cannot read text_file; it can read air")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("test", '{"text": "new", "label": "never seen"}\n', "1 of 1 test texts have a label"),
        ("train", '{"text": "a b", "label": "one"}\n' * 9, "a classifier needs at least two"),
        ("train", '{"text": " ", "label": "cause"}\n', "1 of 1 rows have an empty text: line 1"),
        ("train", b'{"text": "caf\xe9", "label": "cause"}\n', "line 1: not UTF-8"),
        ("train", "", "no text in it"),
        ("train", "{", "line 1: not valid JSON"),
    ],
)
def test_files_that_cannot_be_learnt_from(folder, tmp_path, name, content, told):
    on_disk.write(folder / f"{name}.jsonl", content)
    assert told in refused(folder, tmp_path)


def test_weights_and_tokenizer_that_do_not_belong_together(folder, tmp_path):
    write_weights(tmp_path / "weights")
    other = train_tokenizer(SENTENCES * 2, 270)
    (tmp_path / "other").mkdir()
    other.save(tmp_path / "other")
    told = refused(
        folder,
        tmp_path,
        "--config.init.kind=weights",
        f"--config.init.weights={tmp_path / 'weights'}",
        f"--config.data.tokenizer={tmp_path / 'other'}",
        "--config.data.max_length=18",
    )
    assert told.startswith("config.data.tokenizer: it has 270 entries, the model 280: give the")


def test_weights_are_not_read_with_a_learnt_tokenizer(folder, tmp_path):
    write_weights(tmp_path / "weights")
    told = refused(
        folder,
        tmp_path,
        "--config.init.kind=weights",
        f"--config.init.weights={tmp_path / 'weights'}",
        "--config.data.tokenizer=",
    )
    assert told.startswith("config.data.tokenizer: weights have a tokenizer; give")


@pytest.mark.slow
def test_source_and_target_have_one_tokenizer(folder, tmp_path):
    """Two that are learnt, of one size, number other words."""
    on_disk.write(tmp_path / "source/train.txt", "\n".join(SENTENCES[::-1]) + "\n")
    overrides = [
        "--config.init.kind=pretrain",
        f"--config.source.dir={tmp_path / 'source'}",
        "--config.model.vocab_size=270",
    ]
    told = refused(folder, tmp_path, *overrides)
    assert told.startswith("config.source.tokenizer: another one than config.data.tokenizer")
    train_tokenizer(SENTENCES * 2, 270).save(tmp_path)
    results = run_here(
        tmp_path / "work2",
        "roberta_file.py:smoke",
        f"--config.data.dir={folder}",
        *overrides,
        *(f"--config.{block}.tokenizer={tmp_path}" for block in ("data", "source")),
        *("--config.methods=finetune", "--config.seeds=0,", "--config.model.depth=1"),
    )
    assert results["source"]["counts"]["unlabelled"] == 60
    assert results["source"]["fingerprint"] != results["data"]["fingerprint"]
    assert results["stages"][0]["name"] == "pretrain"


def test_exit_code(folder, tmp_path):
    on_disk.write(folder / "test.jsonl", '{"text": "new", "label": "never seen"}\n')
    arguments = ["--config=configs/roberta_file.py:smoke", f"--config.data.dir={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "sdfp.main", *arguments, f"--workdir={tmp_path / 'work'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("sdfp: 1 of 1 test texts have a label that no training text has")
