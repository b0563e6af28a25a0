"""Row "Label smoothing": a share alpha of the target is spread over all classes.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture for Computer
Vision, CVPR 2016, section 7: cross-entropy to (1 - alpha) q + alpha / K, q one-hot, K classes (the
true class keeps 1 - alpha + alpha / K). Published alpha: 0.1. One of the four regularisers of "Do
we need Label Regularization to Fine-tune Pre-trained Language Models?" (EACL 2023), whose
values we have not seen: those of configs/ are our choice.
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
    """`config.method.label_smoothing`."""

    alpha: float = number(0, 1)


def smoothed(label: jax.Array, classes: int, alpha: float) -> jax.Array:
    """(1 - alpha) q + alpha / K: [examples] integers -> [examples, classes], float32."""
    return (1 - alpha) * jax.nn.one_hot(label, classes) + alpha / classes


@cache
def finetune_loss(backbone: Backbone, settings: Settings) -> LossFn:
    """Cross-entropy to the smoothed labels."""

    def loss(params, frozen, batch: Batch, key: Key) -> dict[str, jax.Array]:
        del frozen
        logits = backbone.logits(params, batch, key, train=True)
        target = smoothed(batch["label"], logits.shape[-1], settings.alpha)
        return {"cross_entropy": losses.soft_cross_entropy(logits, target)}

    return loss


METHOD = Method(settings=Settings, finetune_loss=finetune_loss)
