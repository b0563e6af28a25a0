"""Row "Self-distillation without L_MAE" of Table 3: the student only stays near the teacher.

The ablation keeps L_Distill of Algorithm 1 and drops the student's masked auto-encoding loss. The
teacher is Algorithm 1's, one round (T' = 1), and the student starts at theta_init as there. So
phi is not learned here (weight decay alone changes it); fine-tuning drops it anyway.
"""

from dataclasses import dataclass
from functools import cache

import jax

from sdfp import algorithm
from sdfp.methods.interface import Method
from sdfp.models.interface import Backbone
from sdfp.settings import choice
from sdfp.types import Batch, Key, LossFn


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.distill_only`."""

    features: str = choice("cls", "all")


@cache
def distill_loss(backbone: Backbone, tokens: str) -> LossFn:
    """L_Distill (Eq. 3) alone, with the keys and so the dropout that it has next to L_MAE.

    References: Lee et al. 2023, Table 3.
    """
    both = algorithm.self_distillation_loss(backbone, tokens)

    def loss(params, frozen, batch: Batch, key: Key) -> dict[str, jax.Array]:
        # What is not returned is not computed: the compiler removes the masked pass.
        return {"distill": both(params, frozen, batch, key)["distill"]}

    return loss


def pretrain(init_params, *, backbone, fit, settings: Settings):
    teacher = algorithm.further_pretraining(init_params, backbone=backbone, fit=fit)
    return fit(
        "distill_only",
        distill_loss(backbone, settings.features),
        init_params,
        recipe="self_distill",
        stream="self_distill_1",  # the batches, masks and dropout of the row it is compared with
        frozen=teacher["encoder"],
        per_example=algorithm.teacher_features(backbone, settings.features),
        identity={"features": settings.features},
    )


METHOD = Method(pretrain, Settings)
