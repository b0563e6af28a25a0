"""Algorithm 1 of the paper, and nothing else.

Lee, Kang, Lee, Hwang, Kawaguchi: Self-Distillation for Further Pre-training of
Transformers, ICLR 2023. theta is `params["encoder"]`, phi is `params["decoder"]`.

`fit(name, loss, initial parameters, ...)` trains one stage and returns its last
parameters; it is handed in, bound to data, devices and checkpoints, so that a stage which
was finished before is read from its checkpoint instead. Losses are cached by backbone:
the same function object is the same compiled program.
"""

from functools import cache, partial

import jax

from sdfp import losses
from sdfp.models.interface import Backbone
from sdfp.types import Batch, Key, LossFn, Params


@cache
def masked_loss(backbone: Backbone) -> LossFn:
    """L_MAE (Eq. 1): reconstruct the hidden part of a freshly masked input."""

    def loss(params, frozen, batch: Batch, key: Key) -> dict[str, jax.Array]:
        del frozen
        mask_key, dropout_key = jax.random.split(key)
        mask = backbone.mask(batch, mask_key)
        prediction = backbone.reconstruct(params, batch, mask, dropout_key, train=True)
        return {"masked": backbone.reconstruction_loss(prediction, batch, mask)}

    return loss


@cache
def self_distillation_loss(backbone: Backbone, tokens: str) -> LossFn:
    """L_MAE + L_Distill (Eq. 3): also stay near the teacher's features of the unmasked input.

    `batch["target"]` holds f_teacher(x): the teacher is fixed, so it is an input here and
    gets no gradient.
    """
    masked = masked_loss(backbone)

    def loss(params, frozen, batch: Batch, key: Key) -> dict[str, jax.Array]:
        masked_key, dropout_key = jax.random.split(key)
        student = backbone.features(params["encoder"], batch, dropout_key, True, tokens=tokens)
        distill = losses.squared_distance(student, batch["target"], batch.get("length"))
        return {**masked(params, frozen, batch, masked_key), "distill": distill}

    return loss


@cache
def teacher_features(backbone: Backbone, tokens: str):
    """StopGrad(f_teacher(x)) without dropout, as a function of the frozen encoder."""

    def features(frozen: Params, batch: Batch) -> jax.Array:
        return jax.lax.stop_gradient(backbone.features(frozen, batch, None, False, tokens=tokens))

    return features


@cache
def finetune_loss(backbone: Backbone) -> LossFn:
    """Cross-entropy on D_tr, for the encoder and a fresh head."""

    def loss(params, frozen, batch: Batch, key: Key) -> dict[str, jax.Array]:
        del frozen
        logits = backbone.logits(params, batch, key, train=True)
        return {"cross_entropy": losses.cross_entropy(logits, batch["label"])}

    return loss


def further_pretraining(init_params: Params, *, backbone: Backbone, fit) -> Params:
    """Line 1 of Algorithm 1, and the baseline of the same name: masked auto-encoding on D_u."""
    return fit("further_pretrain", masked_loss(backbone), init_params)


def self_distilled_pretraining(
    init_params: Params,
    *,
    backbone: Backbone,
    fit,
    rounds: int = 1,
    tokens: str = "cls",
    masked_weight: float = 1.0,
    distill_weight: float = 1.0,
) -> Params:
    """Algorithm 1: the student restarts at (theta_init, phi_init) and learns from the teacher.

    Args:
        rounds: T' of the paper. The student of round t is the teacher of round t + 1 (the
            pseudo-code's line 11 prints theta_0 for every round; sections 3.2 and 4 say
            t - 1, which is followed here).
        tokens: "cls" compares the [CLS] vector (what produced the published numbers), "all"
            every token (the paper's Eq. 3).
        masked_weight: lambda of Table 6. 1 is the paper's method.

    Returns:
        The last student's encoder and decoder.
    """
    teacher = further_pretraining(init_params, backbone=backbone, fit=fit)
    distill = partial(
        fit,
        recipe="self_distill",
        weights={"masked": masked_weight, "distill": distill_weight},
        identity={"features": tokens},
    )
    for t in range(1, rounds + 1):
        teacher = distill(
            f"self_distill_{t}",
            self_distillation_loss(backbone, tokens),
            init_params,
            frozen=teacher["encoder"],
            per_example=teacher_features(backbone, tokens),
        )
    return teacher
