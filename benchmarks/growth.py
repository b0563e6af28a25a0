"""How the operations of a training step grow with images, tokens, width and depth, counted.

    python -m benchmarks.growth --json out.json

ViT-B/16 as in configs/vit_cub.py, batch 8, with one thing changed at a time. Nothing is computed:
the step is traced with the shapes of its arguments, and its matrix products are counted, those
included that the backward pass computes again. Of the config's own steps, batches and seeds it says
what the row of self-distillation executes from theta_init to the last fine-tuning.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import cases, flops, outcome
from sdfp import config
from sdfp.models.registry import BACKBONES

BATCH = 8
CHANGES: dict[str, dict[str, int]] = {
    "as it is": {},
    "twice the images": {"batch": 2 * BATCH},
    "image side 320: twice the patches": {"image_size": 320},
    "image side 448: four times": {"image_size": 448},
    "twice the width": {"dim": 1536, "mlp_dim": 6144, "heads": 24},
    "twice the depth": {"depth": 24},
}


def count(stage: str, change: dict[str, int]) -> int:
    """Operations of a step."""
    sizes = {key: value for key, value in change.items() if key != "batch"}
    side = {f"config.data.{key}": value for key, value in sizes.items() if key == "image_size"}
    options = {**{f"config.model.{key}": value for key, value in sizes.items()}, **side}
    batch = change.get("batch", BATCH)
    made = cases.make(
        cases.Case(
            backbone="vit_base",
            stage=stage,
            batch=batch,
            steps=0,
            options=tuple(f"--{key}={value}" for key, value in options.items()),
        )
    )
    model = made.settings.model
    backbone = BACKBONES[made.settings.model_name].make(model, jnp.float32)
    loss_fn = cases.loss_of(stage, backbone)

    def start(key):
        params = backbone.init(key)
        return backbone.add_head(params, made.classes, key) if stage == "finetune" else params

    def objective(params, batch, key):
        return sum(jnp.sum(term) for term in loss_fn(params, None, batch, key).values())

    key = jax.random.key(0)
    params = jax.eval_shape(start, key)
    given = {
        "image": jnp.zeros((batch, model.image_size, model.image_size, model.channels)),
        "index": jnp.arange(batch),
        "label": jnp.zeros(batch, jnp.int32),
        "target": jnp.zeros((batch, model.dim)),
    }
    program = jax.make_jaxpr(jax.grad(objective))(params, given, key)
    return flops.matmul_flops(program)


def measure() -> dict:
    found = {
        name: {stage: count(stage, change) for stage in cases.STAGES}
        for name, change in CHANGES.items()
    }
    raw: Any = config.read(str(cases.ROOT / cases.CONFIGS["vit_base"]), ())
    whole = 0.0
    for stage, operations in found["as it is"].items():
        repeats = len(raw.seeds) if stage == "finetune" else 1
        images = repeats * raw.stages[stage].steps * raw.stages[stage].batch_size
        whole += images / BATCH * operations  # operations are linear in the images
    return {"batch": BATCH, "changes": CHANGES, "found": found, "whole_run": whole}


def show(made: dict) -> None:
    print(f"{'GFLOP per step':34}" + "".join(f"{stage:>18}" for stage in cases.STAGES))
    usual = made["found"]["as it is"]
    for name, told in made["found"].items():
        line = f"{name:34}"
        for stage in cases.STAGES:
            times = told[stage] / usual[stage]
            line += f"{told[stage] / 1e9:9.0f} ({times:.2f} x)".rjust(18)
        print(line)
    print(f"the self-distillation row of CUB, all its stages: {made['whole_run'] / 1e15:.0f} PFLOP")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    outcome.conclude(measure, show, flags.json)
