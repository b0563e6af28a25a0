"""Every setting of a run as frozen dataclasses: here are the types and the ranges, the
values come from configs/ (so no field has a default). `config.py` checks one against the
other. A method or a backbone keeps its own dataclass in its own file.
"""

from dataclasses import dataclass, field
from typing import Any


def number(low=None, high=None, *, above=None, below=None) -> Any:
    """A field with low <= x <= high and above < x < below, each where given."""
    return field(metadata={"low": low, "high": high, "above": above, "below": below})


def choice(*options) -> Any:
    """A field that holds one of `options`."""
    return field(metadata={"options": options})


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Where the examples come from and how they are cut: what images and texts share."""

    name: str
    dir: str
    source: str = choice("files", "tfds")
    test_fraction: float = number(0, below=1)
    validation_fraction: float = number(0, below=1)
    train_labels: int = number(0)
    split_seed: int = number(0)


@dataclass(frozen=True, kw_only=True)
class Data(Examples):
    """Images."""

    image_size: int = number(1)
    channels: int = choice(1, 3)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_broken: int = number(0)
    cache_dir: str


@dataclass(frozen=True, kw_only=True)
class TextData(Examples):
    """Texts."""

    tokenizer: str
    tokenizer_revision: str
    vocab_size: int = number(0)
    max_length: int = number(3)
    text_column: str
    label_column: str


@dataclass(frozen=True, kw_only=True)
class Init:
    """Where theta_init and phi_init come from."""

    kind: str = choice("scratch", "weights", "pretrain")
    weights: str
    revision: str
    missing_decoder: str = choice("stop", "scratch")
    seed: int = number(0)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The optimisation of one training stage. Every field changes its result."""

    steps: int = number(1)
    batch_size: int = number(1)
    accumulate: int = number(1)
    learning_rate: float = number(above=0)
    warmup_steps: int = number(0)
    beta1: float = number(0, below=1)
    beta2: float = number(0, below=1)
    epsilon: float = number(above=0)
    weight_decay: float = number(0)
    no_decay: tuple[str, ...]
    frozen: tuple[str, ...]
    clip_norm: float = number(0)
    augment: bool


@dataclass(frozen=True, kw_only=True)
class Stages:
    """One recipe per kind of stage."""

    pretrain: Recipe
    further_pretrain: Recipe
    self_distill: Recipe
    finetune: Recipe


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How a step is spread over the devices. Changes no result (see docs/design.md)."""

    backend: str = choice("jit", "pmap")
    devices: int = number(0)
    fsdp: bool


@dataclass(frozen=True, kw_only=True)
class Run:
    """Bookkeeping: nothing here changes a result by more than rounding."""

    log_every: int = number(1)
    checkpoint_every: int = number(1)
    steps_per_call: int = number(1)
    eval_batch_size: int = number(1)
    resident_gb: float = number(0)
    pictures: int = number(0)
    probe_every: int = number(0)
    max_skipped: int = number(0)
    masked_loss: bool
    tensorboard: bool
    compilation_cache: str


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole run."""

    name: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    seed: int = number(0)
    precision: str = choice("auto", "float32", "tf32", "bfloat16")
    evaluate_on: str = choice("test", "validation")
    data: Examples
    source: Examples
    model_name: str
    model: Any
    init: Init
    stages: Stages
    method: dict[str, Any]
    parallel: Parallel
    run: Run
