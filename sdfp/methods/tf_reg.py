"""Row "TF-reg": teacher-free knowledge distillation, from a hand-made teacher.

Yuan, Tay, Li, Wang, Feng: Revisiting Knowledge Distillation via Label Smoothing Regularization,
CVPR 2020 (Tf-KD_reg): cross-entropy to (1 - alpha) q + alpha p_d, where the teacher p_d gives the
true class A and each other one (1 - A) / (K - 1). With A = 1/K this is label smoothing.

Variant: temperature 1, summed over the classes. The original softens p_d by a temperature; the
well-known reference code also averages over the classes and takes a softmax of p_d, which changes
the effective weight. Published: A >= 0.9. The values of configs/ are our choice.
"""

from dataclasses import dataclass
from functools import cache

import jax

from sdfp import losses
from sdfp.methods.interface import Method
from sdfp.models.interface import Backbone
from sdfp.settings import number
from sdfp.types import Batch, Key, LossFn


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.tf_reg`."""

    alpha: float = number(0, 1)
    certainty: float = number(0, 1)


def made_up_teacher(label: jax.Array, classes: int, certainty: float) -> jax.Array:
    """p_d: [examples] integers -> [examples, classes], float32."""
    others = (1 - certainty) / max(classes - 1, 1)  # of a single class there are no others
    return others + (certainty - others) * jax.nn.one_hot(label, classes)


@cache
def finetune_loss(backbone: Backbone, settings: Settings) -> LossFn:
    """Cross-entropy to the labels mixed with the made-up teacher's."""

    def loss(params, frozen, batch: Batch, key: Key) -> dict[str, jax.Array]:
        del frozen
        logits = backbone.logits(params, batch, key, train=True)
        label, classes = batch["label"], logits.shape[-1]
        teacher = made_up_teacher(label, classes, settings.certainty)
        target = (1 - settings.alpha) * jax.nn.one_hot(label, classes) + settings.alpha * teacher
        return {"cross_entropy": losses.soft_cross_entropy(logits, target)}

    return loss


METHOD = Method(settings=Settings, finetune_loss=finetune_loss)
