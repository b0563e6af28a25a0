"""What the step benchmarks measure: the same model, recipe, inputs and batches on both sides."""

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdfp import algorithm, config, experiment
from sdfp.data.interface import Split
from sdfp.data.registry import DATASETS
from sdfp.models.interface import Backbone
from sdfp.settings import Experiment, Recipe
from sdfp.train.loop import Order
from sdfp.types import LossFn, UserError

ROOT = Path(__file__).parents[1]
STAGES = ("further_pretrain", "self_distill", "finetune")
CONFIGS = {
    "vit_base": "configs/vit_cub.py",
    "vit_small": "configs/vit_cub.py:small",
    "tiny": "configs/vit_cub.py:smoke",
    "roberta_base": "configs/roberta_scierc.py",
    "roberta_tiny": "configs/roberta_scierc.py:smoke",
}
IMAGES, CLASSES = 256, 200
TOKENS = 50_265
"""RoBERTa's own: its tokenizer is used with the tiny model, too."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement. Both sides get the same one, as JSON."""

    backbone: str
    stage: str
    batch: int
    steps: int
    """Timed, after one more that is not: it compiles and touches all memory."""
    precision: str = "auto"
    micro_batches: int = 1
    """Of the reference, where a whole batch does not fit into its memory; ours has one."""
    data: str = ""
    """Of a text model: the folder with `sciie-relation-extraction` in text/ and `roberta-base` in
    tokenizer/."""
    options: tuple[str, ...] = ()
    """Overrides of our config, as on the command line of sdfp.main."""


def flags_of(program: str) -> argparse.ArgumentParser:
    """The flags that name a case, but for `--steps`, and `--json`."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--backbone", choices=CONFIGS, required=True)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--precision", default="auto", help="ours: auto|float32|tf32|bfloat16")
    parser.add_argument("--data", default="", help="texts; default: $SDFP_TEST_DATA")
    parser.add_argument("--option", action="append", default=[], help="--config.KEY=VALUE")
    parser.add_argument("--json", type=Path, help="file to write")
    return parser


def of(flags: argparse.Namespace) -> Case:
    """The case that the flags name."""
    return Case(
        backbone=flags.backbone,
        stage=flags.stage,
        batch=flags.batch,
        steps=flags.steps,
        precision=flags.precision,
        data=flags.data,
        options=tuple(flags.option),
    )


def loss_of(stage: str, backbone: Backbone) -> LossFn:
    """What a stage minimises."""
    if stage == "self_distill":
        return algorithm.self_distillation_loss(backbone, "cls")
    if stage == "finetune":
        return algorithm.finetune_loss(backbone)
    return algorithm.masked_loss(backbone)


class Made(NamedTuple):
    """A case with its data."""

    settings: Experiment
    recipe: Recipe
    split: Split
    """Arrays `image` (uint8, NHWC) and `label`, or `tokens`, `length` and `label`."""
    classes: int
    order: Order
    timed: int
    """Steps."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """`index` and `weight` [examples] of a step: the same examples on both sides."""
        made = self.order.batch(step, len(self.split))
        return {name: array.reshape(-1) for name, array in made.items()}


def make(case: Case) -> Made:
    """The config's own model and recipe, with random images or the real SciERC texts.

    Raises:
        UserError: no folder with texts.
    """
    raw: Any = config.read(str(ROOT / CONFIGS[case.backbone]), case.options)
    raw.precision = case.precision
    raw.stages[case.stage].batch_size = case.batch
    if case.backbone.startswith("roberta"):
        folder = Path(case.data or os.environ.get("SDFP_TEST_DATA", "no folder"))
        place = folder / "text" / "sciie-relation-extraction"
        if not place.is_dir():
            raise UserError(
                f"--data: {place} is not there; give the folder that holds "
                "text/sciie-relation-extraction and tokenizer/roberta-base"
            )
        raw.data.dir = str(place)
        raw.data.tokenizer = str(folder / "tokenizer" / "roberta-base")
        raw.model.vocab_size = TOKENS
    raw.init.kind, raw.init.weights, raw.method.kd.weights = "scratch", "", ""
    settings = experiment.parse(raw)
    # A schedule of the full length: the few steps that are timed are its first.
    recipe = getattr(settings.stages, case.stage)
    recipe = replace(recipe, steps=max(recipe.steps, case.steps + 2))
    order = Order(0, case.batch, recipe.accumulate, 1)
    if case.backbone.startswith("roberta"):
        data = DATASETS["scierc"].load(settings.data)
        return Made(settings, recipe, data.train, len(data.class_names), order, case.steps)
    split = _images(settings.model, max(IMAGES, case.batch))
    return Made(settings, recipe, split, CLASSES, order, case.steps)


def _images(model: Any, count: int) -> Split:
    random = np.random.default_rng(0)
    shape = (count, model.image_size, model.image_size, model.channels)
    image = random.integers(0, 256, shape, np.uint8)
    label = random.integers(0, CLASSES, count).astype(np.int32)
    return Split({"image": image, "label": label}, tuple(map(str, range(count))))
