"""Before training: every mistake in one list, and `--check`, which goes no further."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
import training

from sdfp import cli, config, experiment, memory, parallel
from sdfp.problems import Problems
from sdfp.types import UserError

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests" / "tiny_config.py")


def check(workdir, *overrides, wish=experiment.CONFIG_ONLY):
    experiment.check(config.read(TINY, [f"--config.{o}" for o in overrides]), workdir, wish)


def problems(workdir, *overrides, **more) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        check(workdir, *overrides, **more)
    return caught.value.problems


def test_several_problems_are_kept_once_each():
    found = Problems()
    for line in ("one", "two", "one"):
        with found.noted():
            raise UserError(line)
    with found.noted():
        raise UserError("three", "four")
    with pytest.raises(UserError) as caught:
        found.stop()
    assert caught.value.problems == ("one", "two", "three", "four")
    assert str(caught.value) == "one; two; three; four"


def test_faults_of_ours_are_not_kept():
    found = Problems()
    with pytest.raises(ZeroDivisionError), found.noted():
        1 / 0  # noqa: B018
    found.stop()


def test_several_are_a_list_on_the_command_line(capsys):
    def fail():
        raise UserError("no such\nkey", "no such file")

    assert cli.exit_code(fail) == 2
    assert capsys.readouterr().err == "sdfp: 2 problems:\n  - no such key\n  - no such file\n"


def test_a_config_is_checked_to_its_end(tmp_path):
    """Wrong keys, types and ranges of several blocks; and what does not go together, where each
    value alone is right."""
    values = config.read(TINY)
    values.stages.finetune.steps = 0
    values.name = "a b"  # not told yet: as a string it is right
    values.data.train_labels = -1
    values.model.patch_size = -4
    values.method.self_distillation.rounds = 0
    with values.unlocked():
        del values.run.log_every
    with pytest.raises(UserError) as caught:
        experiment.check(values, tmp_path)
    found = caught.value.problems
    assert len(found) == 5
    for key in (
        "config.stages.finetune.steps: must be",
        "config.data.train_labels: must be",
        "config.model.patch_size: must be",
        "config.method.self_distillation.rounds: must be",
        "config.run.log_every: missing",
    ):
        assert any(line.startswith(key) for line in found), key
    found = problems(
        tmp_path, "seeds=1,1", "stages.finetune.warmup_steps=99", "data.mean=(0.5,0.5)"
    )
    assert [line.split(":")[0] for line in found] == [
        "config.seeds",
        "config.stages.finetune.warmup_steps",
        "config.data.mean",
    ]


def test_several_overrides_are_misspelt():
    with pytest.raises(UserError) as caught:
        config.read(TINY, ["--config.sede=1", "--config.seed=2", "--config.stage.x=3"])
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "--config.sede",
        "--config.stage.x",
    ]


def test_several_values_cannot_be_read():
    with pytest.raises(UserError) as caught:
        config.read(TINY, ["--config.seed=x", "--config.stages.finetune.steps=1e3", "--config.a=1"])
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "--config.seed=x",
        "--config.stages.finetune.steps=1e3",
        "--config.a",
    ]


def test_data_source_weights_and_work_directory_in_one_list(tmp_path):
    """None of them needs another one."""
    folder = tmp_path / "stages" / "finetune" / "further_pretrain" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text('{"seed": 7}')
    changes = ("data.name=image_folder", f"data.dir={tmp_path}/none", "source.name=photos")
    found = problems(tmp_path, *changes)
    assert [line.split(":")[0] for line in found[:2]] == [
        f"no folder {tmp_path}/none",
        "config.source.name",
    ]
    assert found[2].startswith(f"{folder} was made with other settings: ")
    assert len(found) == 3
    weights = ("init.kind=weights", f"init.weights={tmp_path}/mae.safetensors")
    found = problems(tmp_path / "new", *changes[:2], *weights)
    assert len(found) == 2
    assert found[1] == f"{tmp_path}/mae.safetensors: no such file"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (("data.image_size=16",), "config.data.image_size"),
        (("source.image_size=16",), "config.source.image_size"),
        (("model.image_size=16",), "config.data.image_size"),
        (("data.channels=3", "data.mean=0.5,0.5,0.5", "data.std=0.5,0.5,0.5"), "config.data.chan"),
    ],
)
def test_a_model_that_does_not_fit_the_data(tmp_path, changes, line):
    """Told among the others; what it would need is not traced."""
    found = problems(tmp_path, *changes, "evaluate_on=validation")
    assert any(told.startswith(line) for told in found), found
    assert any(told.startswith("config.evaluate_on=validation: ") for told in found)


@pytest.mark.parametrize(
    ("files", "inside", "refused"),
    [
        (("cat/0.png", "dog/0.png"), "", True),
        (("cat/0.png", "dog/0.png"), "runs/x", True),
        (("cat/0.png", "dog/0.png"), "cat/run", True),
        (("train/cat/0.png", "train/dog/0.png"), "train/run", True),
        (("train/cat/0.png", "unlabelled/0.png"), "unlabelled", True),
        (("train/cat/0.png", "train/dog/0.png"), "runs", False),
        (("train.csv", "cat/0.png"), "cat/run", False),
        (("train.csv", "unlabelled/0.png"), "unlabelled/run", True),
    ],
)
def test_a_work_directory_among_the_images(tmp_path, files, inside, refused):
    """The next run would take its pictures for data."""
    for name in files:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "d")
    changes = ("data.name=image_folder", f"data.dir={tmp_path}/link")
    found = problems(tmp_path / "d" / inside, *changes)
    line = f"--workdir={tmp_path / 'd' / inside}: lies among the images of config.data.dir"
    assert any(told.startswith(line) for told in found) == refused


def test_a_larger_teacher_is_read_before_training(tmp_path):
    rows, missing = "methods=kd,finetune", tmp_path / "large"
    found = problems(tmp_path, rows, f"method.kd.weights={missing}")
    assert found == (f"{missing}: no such file or folder",)


def test_what_is_measured_and_chosen_by(tmp_path):
    wish = experiment.Wish({"self_distillation.rounds": (1, 2)})
    found = problems(tmp_path, "stages.self_distill.no_decay=biass,", wish=wish)
    assert found[0].startswith("--tune: there is no validation split")
    assert found[1].startswith("config.stages.self_distill.no_decay: no parameter is called")


@pytest.mark.slow
def test_check_keeps_nothing_and_a_run_with_other_settings_follows(tmp_path, capsys):
    check(tmp_path)
    told = capsys.readouterr().out
    assert "init: random parameters, seed 0\n" in told
    assert told.endswith("check: no problem found; nothing was trained\n")
    assert list(tmp_path.iterdir()) == []
    values = config.read(TINY, ["--config.model.dim=32", "--config.methods=('finetune',)"])
    values.stages.finetune.steps = values.stages.pretrain.steps = 1
    assert experiment.run(values, tmp_path)["complete"]
    assert problems(tmp_path, "methods=('finetune',)")[0].endswith(
        "Use another --workdir, or delete this folder to make the stage again"
    )


def test_with_pmap_and_without_labels(tmp_path, capsys):
    """With pmap the devices' arrays have another shape; without labels and masked stages there is
    nothing to train."""
    check(tmp_path, "parallel.backend=pmap")
    assert "memory: " in capsys.readouterr().out
    check(tmp_path, "data.name=sklearn_photos", "methods=('finetune',)", "init.kind=scratch")
    assert "memory: " not in capsys.readouterr().out


@pytest.mark.parametrize("tool", ["main", "table"])
def test_check_as_a_process(tmp_path, tool):
    command = [sys.executable, "-m", f"sdfp.{tool}", "--check", f"--config={TINY}"]
    command += [f"--workdir={tmp_path}/w", "--config.data.dir=/none", "--config.data.name=cub"]
    ended = subprocess.run(
        [*command, "--config.evaluate_on=test"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("sdfp: ")
    assert "/none" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def objective(params, frozen, batch, key):
    """Two products with a nonlinearity that keeps its output."""
    del frozen, key
    hidden = jnp.tanh(batch["image"] @ params["first"])
    return {"loss": jnp.sum(hidden @ params["second"], axis=1) ** 2}


def test_what_is_kept_for_the_backward_pass_is_counted():
    """By hand: the input, tanh's output and the sum's square; the parameters are counted once, as
    held: twice with their gradients, and AdamW's two moments and its count."""
    recipe = training.masked(batch_size=8, accumulate=2)
    feed = training.feed(training.waves(20), parallel.make("jit", 1))
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    params = {"first": shape(768, 64), "second": shape(64, 32)}

    def prepare(batch, key, augment):
        del key, augment
        image = batch["image"].astype(jnp.float32)
        return {**batch, "image": image.reshape(len(image), -1)}

    tx = optax.adamw(1.0)
    step = memory.Step(objective, recipe, "unlabelled", tx, None)
    need = memory.need_of(step, params, None, prepare, feed, 1)
    weights = 768 * 64 + 64 * 32
    resident = sum(array.nbytes for array in feed.split.arrays.values())
    assert need.held == 4 * weights * 4 + 4 + resident
    parts = memory.need_of(step, params, None, prepare, feed, 4, fsdp=True)
    assert parts.held == (3 * weights * 4 + 4) // 4 + 2 * weights * 4 + resident
    assert parts.activations < need.activations / 3
    rows = 8 // 2
    least = 4 * rows * (768 + 64)
    assert least <= need.activations <= least + 4 * rows * (64 + 2 * 32)


def needs(monkeypatch, held, activations, there):
    found = {"finetune": memory.Need(held, activations), "pretrain": memory.Need(1, 1)}
    monkeypatch.setattr(memory, "_needs", lambda *_: found)
    monkeypatch.setattr(memory.machine, "memory", lambda _: there)

    class Nowhere:
        place = SimpleNamespace(devices=SimpleNamespace(count=1))

    memory.check(Nowhere, (), None, None, ())


def test_memory_is_told_warned_of_and_refused(monkeypatch, capsys):
    gb = 10**9
    needs(monkeypatch, 2 * gb, 3 * gb, None)
    assert capsys.readouterr().out == "memory: finetune needs about 5 GB of a device\n"
    needs(monkeypatch, 2 * gb, 3 * gb, 8 * gb)
    assert capsys.readouterr().out == (
        "memory: finetune needs about 5 GB of a device, 8 GB are there\n"
    )
    needs(monkeypatch, 2 * gb, 3 * gb, 4 * gb)
    assert "warning: memory: if it fails, raise accumulate" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"about 14.0 GB of a device, 4 GB are there: raise"):
        needs(monkeypatch, 2 * gb, 12 * gb, 4 * gb)
    with pytest.raises(UserError, match=r"^memory: finetune needs 5 GB of a device for param"):
        needs(monkeypatch, 5 * gb, 0, 4 * gb)


@pytest.mark.slow
def test_more_micro_batches_need_less(tmp_path, capsys):
    """Through the whole preparation: the line changes with the recipe."""

    def told(*overrides):
        check(tmp_path, *overrides)
        lines = capsys.readouterr().out.splitlines()
        line = next(line for line in lines if line.startswith("memory: "))
        return float(line.split(" needs about ")[1].split()[0])

    stages = [f"stages.{name}.batch_size=512" for name in ("pretrain", "further_pretrain")]
    more = [line.replace("batch_size=512", "accumulate=8") for line in stages]
    assert told(*stages) > 2 * told(*stages, *more)
