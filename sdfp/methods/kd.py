"""Row "KD": vanilla knowledge distillation from a fine-tuned, larger model.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015:

    (1 - alpha) CE(q, p) + alpha tau^2 KL(softmax(z_teacher / tau) || softmax(z / tau))

Variant: the KL is summed over the classes (the well-known reference code averages over them, a
weight K times smaller), and tau^2 keeps its gradient's scale whatever tau is (section 2 there).
Neither alpha nor tau of the label regularisation paper (EACL 2023) is known to us: the values of
configs/ are our choice.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import jax

from sdfp import losses
from sdfp.methods.interface import Method, Teacher, Teachers
from sdfp.models.interface import Backbone
from sdfp.settings import number
from sdfp.types import Batch, Key, LossFn


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.kd`."""

    TEACHER_ONLY: ClassVar = ("teacher", "weights", "depth")

    alpha: float = number(0, 1)
    temperature: float = number(above=0)
    teacher: str
    """A stage of a work directory, or an exported folder; "" for one that is fine-tuned first."""
    weights: str
    """What the latter starts from, as in config.init."""
    depth: int = number(0)
    """Its layers, as `Teachers.larger` takes them."""


def teacher(teachers: Teachers, settings: Settings) -> Teacher:
    if settings.teacher:
        return teachers.given(settings.teacher)
    return teachers.larger(settings.weights, settings.depth)


@cache
def distillation_loss(backbone: Backbone, alpha: float, temperature: float) -> LossFn:
    """Cross-entropy to the labels, and KL to the teacher whose logits are `batch["target"]`."""

    def loss(params, frozen, batch: Batch, key: Key) -> dict[str, jax.Array]:
        del frozen
        logits = backbone.logits(params, batch, key, train=True)
        target = jax.lax.stop_gradient(batch["target"])
        distance = losses.kl_divergence(target, logits, temperature)
        return {
            "cross_entropy": (1 - alpha) * losses.cross_entropy(logits, batch["label"]),
            "distill": alpha * temperature**2 * distance,
        }

    return loss


def finetune_loss(backbone: Backbone, settings: Settings) -> LossFn:
    return distillation_loss(backbone, settings.alpha, settings.temperature)


METHOD = Method(settings=Settings, teacher=teacher, finetune_loss=finetune_loss)
