"""Whole runs of every method with a tiny model of each backbone: for test_method_contract.py and
device_worker_methods.py. They take the real path, from a config to a work directory."""

import contextlib
import csv
import random
from pathlib import Path
from typing import Any, NamedTuple

import jax
import training
from PIL import Image

from sdfp import config, experiment, stages
from sdfp.methods.registry import METHODS
from sdfp.train import loop

ROOT = Path(__file__).parents[1]
ROWS = (*METHODS, "self_distillation+label_smoothing", "further_pretrain+recadam")
FILES = {"vit": "configs/vit_folder.py:smoke", "roberta": "configs/roberta_file.py:smoke"}
TRAIN, TEST, CLASSES = 21, 6, ("a", "b", "c")  # batches of 8, 8 and 5
STEPS = 30
SIZES = {
    "vit": {"image_size": 16, "patch_size": 4, "decoder_dim": 8, "decoder_mlp_dim": 16},
    "roberta": {"vocab_size": 270, "max_positions": 34},
}
WORDS = {
    "a": ("the", "model", "learns", "from", "few"),
    "b": ("a", "teacher", "that", "stays", "near"),
    "c": ("labelled", "texts", "and", "its", "start"),
}


def write_data(backbone: str, folder: Path) -> Path:
    """Images in folders, or texts in .csv files."""
    if backbone == "vit":
        arrays = training.waves(TRAIN + TEST).arrays
        for number, image in enumerate(arrays["image"]):
            part = "train" if number < TRAIN else "test"
            path = folder / part / CLASSES[number % 3] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for part, numbers in (("train", range(TRAIN)), ("test", range(TRAIN, TRAIN + TEST))):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for number in numbers:
                label, draw = CLASSES[number % 3], random.Random(number)
                writer.writerow([" ".join(draw.choices(WORDS[label], k=2 + number % 5)), label])
    return folder


def tiny(backbone: str, data: Path, row: str) -> Any:
    """The family's own config for one row: a tiny model without dropout, few steps, and the
    settings that are made for longer runs."""
    config_dict = config.read(str(ROOT / FILES[backbone]))
    config_dict.methods, config_dict.seeds = (row,), (0,)
    config_dict.data.dir = str(data)
    model = config_dict.model
    model.update({"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32, **SIZES[backbone]})
    model.update({name: 0.0 for name in model if "dropout" in name})
    if backbone == "vit":
        config_dict.data.update({"image_size": 16, "cache_dir": ""})
    else:
        config_dict.data.max_length = 32
    for name, recipe in config_dict.stages.items():
        rate = 3e-3 if name == "finetune" else 1e-2
        recipe.update({"steps": STEPS, "batch_size": 8, "learning_rate": rate})
    method = config_dict.method
    # It has to pull, and not to throw: learning rate * penalty is at most 2.
    method.recadam.update({"penalty": 100.0, "midpoint": STEPS // 2})
    # What the published values do is nothing here, right or wrong.
    method.mars.update({"radius": 0.3, "head_radius": 0.3})
    method.r3f.epsilon = 0.1
    config_dict.run.update({"log_every": 1, "checkpoint_every": 1000, "steps_per_call": 5})
    config_dict.run.update({"pictures": 0, "masked_loss": False, "tensorboard": False})
    config_dict.parallel.devices = 1
    return config_dict


def run(config_dict: Any, workdir: Path, wish=experiment.CONFIG_ONLY) -> dict[str, Any]:
    """Raises RuntimeError if a cell failed."""
    results = experiment.run(config_dict, workdir, wish)
    experiment.check(results)
    return results


class Trained(NamedTuple):
    """What was seen of a stage while it was trained."""

    program: Any
    """The compiled function: the same object for the stages that share one."""
    compilations: int
    terms: dict[str, jax.ShapeDtypeStruct]
    """What its loss returns for a micro-batch."""
    weight: jax.ShapeDtypeStruct
    """The weights of that micro-batch."""


@contextlib.contextmanager
def watched(seen: dict[str, Trained]):
    """Takes down what every stage that is trained within compiles.

    What counts is XLA's compilations of the train program as JAX reports them: neither a cache of
    ours nor one of JAX's can hide one. A count of traces would miss those where only the placement
    of an argument has changed. No report under this name at all would be a count of 0.
    """
    compiled: list[str] = []
    used: list[tuple] = []
    whole_stage, compile_train = stages.run_stage, loop.compile_train

    def listen(event: str, _: float, fun_name: str = "", **__) -> None:
        if event.endswith("/backend_compile_duration") and "train_steps" in fun_name:
            compiled.append(fun_name)

    def run_stage(stage, place):
        used.clear()
        before = len(compiled)
        outcome = whole_stage(stage, place)
        if used:
            program, *told = used[0]
            seen[stage.name] = Trained(program, len(compiled) - before, *told)
        return outcome

    def compiling(devices, loss_fn, prepare, tx, weights):
        program = compile_train(devices, loss_fn, prepare, tx, weights)

        def noted(state, frozen, resident, batches, key, count):
            if not used:
                batch = jax.tree.map(lambda leaf: leaf[0, 0], batches)
                told = jax.eval_shape(
                    lambda: loss_fn(
                        state.params, frozen, prepare(frozen, resident, batch, key), key
                    )
                )
                used.append((program, told, jax.typeof(batch["weight"])))
            return program(state, frozen, resident, batches, key, count)

        return noted

    jax.monitoring.register_event_duration_secs_listener(listen)
    stages.run_stage, loop.compile_train = run_stage, compiling
    try:
        yield
    finally:
        stages.run_stage, loop.compile_train = whole_stage, compile_train
        jax.monitoring.unregister_event_duration_listener(listen)
