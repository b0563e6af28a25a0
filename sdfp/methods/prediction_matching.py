"""Row "Prediction-Matching" of Table 3: the student matches what the teacher predicts.

Instead of features of the unmasked input, the ablation compares reconstructions of the same masked
input: squared error for ViT, KL(teacher || student) for RoBERTa. So the teacher keeps its decoder.

Our choices: one round (T' = 1); L_MAE and the matching term read one mask and one pass of the
student; the teacher has no dropout, as in Algorithm 1; the distance is a mean over each example's
hidden positions, as L_MAE is. The paper's text names no weight of the term: it is a setting.
"""

from dataclasses import dataclass
from functools import cache

import jax

from sdfp import algorithm
from sdfp.methods.interface import Method
from sdfp.models.interface import Backbone
from sdfp.settings import number
from sdfp.types import Batch, Key, LossFn


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.prediction_matching`."""

    weight: float = number(above=0)


@cache
def matching_loss(backbone: Backbone) -> LossFn:
    """L_MAE, and the distance of the student's prediction to that of the teacher.

    `frozen` is the whole teacher, {"encoder", "decoder"}.

    References: Lee et al. 2023, Table 3.
    """

    def loss(params, frozen, batch: Batch, key: Key) -> dict[str, jax.Array]:
        # Split as in `algorithm.masked_loss`: the same key hides the same positions.
        mask_key, dropout_key = jax.random.split(key)
        mask = backbone.mask(batch, mask_key)
        student = backbone.reconstruct(params, batch, mask, dropout_key, train=True)
        teacher = backbone.reconstruct(frozen, batch, mask, None, train=False)
        return {
            "masked": backbone.reconstruction_loss(student, batch, mask),
            "matching": backbone.prediction_distance(
                student, jax.lax.stop_gradient(teacher), batch, mask
            ),
        }

    return loss


def pretrain(init_params, *, backbone, fit, settings: Settings):
    teacher = algorithm.further_pretraining(init_params, backbone=backbone, fit=fit)
    return fit(
        "prediction_matching",
        matching_loss(backbone),
        init_params,
        recipe="self_distill",
        stream="self_distill_1",  # the batches, masks and dropout of the row it is compared with
        frozen=teacher,
        weights={"matching": settings.weight},
    )


METHOD = Method(pretrain, Settings)
