"""A method: what one row of the result tables changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sdfp import algorithm, optim
from sdfp.models.interface import Backbone
from sdfp.types import Params


@dataclass(frozen=True)
class NoSettings:
    """For methods that have nothing to set."""


class Teacher(NamedTuple):
    """A fine-tuned model that fine-tuning learns from. It is never trained further."""

    backbone: Backbone
    params: Params
    """On the host: {"encoder", "head"}, for the classes of the student."""
    architecture: dict[str, Any]
    """What its logits depend on beside the parameters."""


class Teachers(NamedTuple):
    """The teachers that a method can ask for."""

    same: Callable
    """() -> Teacher: what this row would be without the teacher, fine-tuned with the same seed."""
    larger: Callable
    """(weights, depth) -> Teacher: a larger model, fine-tuned once for all seeds. `weights` as
    config.init.weights, which bring their own depth; "" for a model that starts as the student
    does, with `depth` blocks, 0 for twice the student's."""
    given: Callable
    """(path) -> Teacher: a stage of a work directory, or an exported folder."""


def start_from_init(init_params, *, backbone, fit, settings):
    """No further pre-training: fine-tuning starts from theta_init."""
    del backbone, fit, settings
    return init_params


def no_teacher(teachers: Teachers, settings):
    del teachers, settings


def cross_entropy(backbone, settings):
    """Plain fine-tuning's loss."""
    del settings
    return algorithm.finetune_loss(backbone)


def adamw(recipe, settings):
    """Plain fine-tuning's optimiser."""
    del settings
    return optim.adamw_of(recipe)


class Method(NamedTuple):
    """Every field defaults to plain fine-tuning. The functions decide by their arguments alone;
    losses and optimisers are cached: the same object is the same compiled program."""

    pretrain: Callable = start_from_init
    """(init_params, *, backbone, fit, settings) -> {"encoder", "decoder"}: the parameters
    that fine-tuning starts from. `fit` is described in algorithm.py and, with all of its arguments,
    in stages.py. Settings that change a stage's result are handed to it as `weights` or `identity`.
    To plan a run it is called with backbone=None, empty parameters and a `fit` that trains nothing:
    the backbone may be used within losses only."""
    settings: type = NoSettings
    """Frozen dataclass that `config.method.<name>` is parsed into. Its TEACHER_ONLY names the
    fields that decide the teacher and nothing else, its NOT_IN_STAGES those that decide which
    masked stages there are, not what they are."""
    teacher: Callable = no_teacher
    """(teachers, settings) -> Teacher or None. The loss finds its logits, without dropout, of the
    same (augmented) input as batch["target"] [examples, classes]."""
    finetune_loss: Callable = cross_entropy
    """(backbone, settings) -> LossFn for parameters {"encoder", "head"}. Its terms are added as
    they are, factors included."""
    make_optimizer: Callable = adamw
    """(recipe, settings) -> optax.GradientTransformation for the same parameters; its `init` sees
    what fine-tuning starts from. Raises UserError for settings that cannot work."""
    float32: bool = False
    """Whether fine-tuning must be in float32 whatever the run's precision."""
