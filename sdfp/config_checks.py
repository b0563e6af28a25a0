"""What no single key of a config can tell: values that do not go together."""

import re
from collections.abc import Iterable, Iterator

from sdfp import checked, settings
from sdfp.problems import Problems
from sdfp.settings import Experiment

MAX_SEED = 2**32 - 1
"""JAX reads 32 bits of a seed: a larger one would repeat a smaller one's run."""


def check(experiment: Experiment, methods: Iterable[str]) -> None:
    """Raises UserError of everything in a config that does not go together.

    Args:
        methods: the names that the parts of a row may have.
    """
    found = Problems()
    for part in dict.fromkeys(part for name in experiment.methods for part in name.split("+")):
        with found.noted():
            checked.one_of("config.methods", part, methods)
    for lines in (_names, _seeds, _recipes, _normalisation, _init):
        for line in lines(experiment):
            found.add(line)
    found.stop()


def _names(experiment: Experiment) -> Iterator[str]:
    for key, names in (("methods", experiment.methods), ("seeds", experiment.seeds)):
        if not names or len(set(names)) != len(names):
            yield f"config.{key}: give each of them once, at least one; got {names}"
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", experiment.name):
        yield (
            "config.name: letters, digits, '_', '-' and, but not first, '.'; "
            f"got {experiment.name!r}"
        )


def _seeds(experiment: Experiment) -> Iterator[str]:
    seeds = [("seed", experiment.seed), ("init.seed", experiment.init.seed)]
    for key, seed in seeds + [("seeds", seed) for seed in experiment.seeds]:
        if not 0 <= seed <= MAX_SEED:
            yield f"config.{key}: must be from 0 to {MAX_SEED}; got {seed}"


def _recipes(experiment: Experiment) -> Iterator[str]:
    for name, recipe in vars(experiment.stages).items():
        if recipe.warmup_steps >= recipe.steps:
            yield (
                f"config.stages.{name}.warmup_steps: must be below steps ({recipe.steps}); "
                f"got {recipe.warmup_steps}"
            )
        if recipe.augment and isinstance(experiment.data, settings.TextData):
            yield f"config.stages.{name}.augment: texts have no augmentation; set False"


def _normalisation(experiment: Experiment) -> Iterator[str]:
    for key, data in (("data", experiment.data), ("source", experiment.source)):
        if not isinstance(data, settings.Data):
            continue
        for part in ("mean", "std"):
            values = getattr(data, part)
            if len(values) != data.channels:
                yield (
                    f"config.{key}.{part}: needs {data.channels} values, one per channel; "
                    f"got {values}"
                )
        if min(data.std, default=1) <= 0:
            yield f"config.{key}.std: must be above 0; got {data.std}"


def _init(experiment: Experiment) -> Iterator[str]:
    kind, weights, data = experiment.init.kind, experiment.init.weights, experiment.data
    if kind == "weights" and isinstance(data, settings.TextData) and not data.tokenizer:
        yield "config.data.tokenizer: weights have a tokenizer; give its folder or hub id"
    if kind == "weights" and not weights:
        yield "config.init.weights: give a Hugging Face id, a folder or a .safetensors file"
    if kind != "weights" and weights:
        yield (
            f"config.init.weights: {weights!r} would not be read with config.init.kind={kind}; "
            "set the kind to weights"
        )
