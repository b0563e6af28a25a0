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
STEPS, RATE = 36, 1e-2
TRAIN, TEST = 21, 6  # batches of 8, 8 and 5
WORDS = {
    "cause": ("the", "model", "learns", "from", "few"),
    "effect": ("a", "teacher", "that", "stays", "near"),
    "none": ("labelled", "texts", "and", "its", "start"),
}
CLASSES = tuple(WORDS)

FILES = {"vit": "configs/vit_folder.py:smoke", "roberta": "configs/roberta_file.py:smoke"}
SIZES = {
    "vit": {"image_size": 16, "patch_size": 4, "decoder_dim": 8, "decoder_mlp_dim": 16},
    "roberta": {"vocab_size": 270, "max_positions": 34},
}
DATA = {"vit": {"image_size": 16, "cache_dir": ""}, "roberta": {"max_length": 32}}


def write_data(backbone: str, folder: Path) -> Path:
    """A user's folder, of which a model can learn something: each class has a colour, or words."""
    if backbone == "vit":
        for number, image in enumerate(training.waves(TRAIN + TEST).arrays["image"]):
            image[..., number % 3] //= 2
            part = "train" if number < TRAIN else "test"
            path = folder / part / CLASSES[number % 3] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        return folder
    folder.mkdir(parents=True)
    for part, numbers in (("train", range(TRAIN)), ("test", range(TRAIN, TRAIN + TEST))):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for number in numbers:
                label, length = CLASSES[number % 3], 2 + number % 5
                words = random.Random(number).choices(WORDS[label], k=length)
                writer.writerow([" ".join(words), label])
    return folder


def tiny(backbone: str, data: Path, *rows: str, steps: int = STEPS) -> Any:
    """The backbone's own config with a tiny model, few steps and no dropout. Of the methods'
    settings only those are changed that are made for large models and long runs."""
    made = config.read(str(ROOT / FILES[backbone]))
    made.methods, made.seeds = rows, (0,)
    made.data.dir = str(data)
    made.data.update(DATA[backbone])
    made.model.update({"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32, **SIZES[backbone]})
    made.model.update({name: 0.0 for name in made.model if "dropout" in name})
    for recipe in made.stages.values():
        recipe.update({"steps": steps, "learning_rate": RATE})
    made.method.recadam.update({"penalty": 1 / RATE, "midpoint": 5})  # above 2 / RATE it diverges
    # With the configs' own values neither of them does anything to a run like this, so that
    # whatever is wrong with them would be of no consequence.
    made.method.mars.update({"radius": 0.8, "head_radius": 0.5})
    made.method.r3f.epsilon = 0.1
    made.run.update({"log_every": 1, "checkpoint_every": 1000, "steps_per_call": 5})
    made.run.update({"pictures": 0, "masked_loss": False, "tensorboard": False})
    made.run.probe_every = 0
    made.parallel.devices = 1
    return made


def run(made: Any, workdir: Path, wish: experiment.Wish = experiment.CONFIG_ONLY) -> dict[str, Any]:
    """`experiment.run`, but a cell that fails is an error."""
    results = experiment.run(made, workdir, wish)
    experiment.refuse_failed(results)
    return results


class Trained(NamedTuple):
    """What was seen of a stage while it was trained."""

    program: Any
    """The compiled function: the same object for the stages that share one."""
    calls: set[tuple]
    """The different shapes and dtypes of its arguments."""
    compilations: int
    terms: dict[str, Any]
    """Shape and dtype of what the loss returned for one micro-batch."""
    weight: Any
    """Shape and dtype of that micro-batch's weights."""


@contextlib.contextmanager
def watched(seen: dict[str, Trained]):
    """Takes down every stage that is trained within.

    What counts as a compilation is one of XLA's of the train program, as JAX reports it. Neither a
    cache of ours nor one of JAX's can hide one. Counting traces would miss those where only the
    placement of an argument differs, and entries of a jitted function's cache those of a second
    jitted function. Should JAX change the name of the report, the count is 0, not 1.
    """
    compiled: list[str] = []
    now: list[Any] = []
    whole_stage, compile_train = stages.run_stage, loop.compile_train

    def listen(event: str, _: float, fun_name: str = "", **__) -> None:
        if event.endswith("/backend_compile_duration") and "train_steps" in fun_name:
            compiled.append(fun_name)

    def run_stage(stage, place, probe):
        before = len(compiled)
        now.clear()
        outcome = whole_stage(stage, place, probe)
        if now:
            program, calls, terms, weight = now
            seen[stage.name] = Trained(program, calls, len(compiled) - before, terms, weight)
        return outcome

    def compiling(devices, loss_fn, prepare, tx, weights):
        program = compile_train(devices, loss_fn, prepare, tx, weights)

        def called(state, frozen, resident, batches, key, count):
            if not now:
                batch = jax.tree.map(lambda leaf: leaf[0, 0], batches)
                prepared = lambda: prepare(frozen, resident, batch, key)
                terms = jax.eval_shape(lambda: loss_fn(state.params, frozen, prepared(), key))
                now.extend([program, set(), terms, jax.typeof(batch["weight"])])
            leaves = jax.tree.leaves((state, frozen, resident, batches))
            now[1].add(tuple((leaf.shape, leaf.dtype) for leaf in leaves))
            return program(state, frozen, resident, batches, key, count)

        return called

    jax.monitoring.register_event_duration_secs_listener(listen)
    stages.run_stage, loop.compile_train = run_stage, compiling
    try:
        yield
    finally:
        stages.run_stage, loop.compile_train = whole_stage, compile_train
        jax.monitoring.unregister_event_duration_listener(listen)
