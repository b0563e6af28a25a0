"""Row "Self-distillation": the paper's method."""

from dataclasses import dataclass
from typing import ClassVar

from sdfp import algorithm
from sdfp.methods.interface import Method
from sdfp.settings import choice, number
from sdfp.types import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.self_distillation`."""

    NOT_IN_STAGES: ClassVar = ("rounds",)

    rounds: int = number(1)
    features: str = choice("cls", "all")
    masked_weight: float = number(0)
    distill_weight: float = number(0)

    def __post_init__(self):
        if self.masked_weight == self.distill_weight == 0:
            raise UserError("config.method.self_distillation: both weights are 0, nothing to learn")


def pretrain(init_params, *, backbone, fit, settings: Settings):
    return algorithm.self_distilled_pretraining(
        init_params,
        backbone=backbone,
        fit=fit,
        rounds=settings.rounds,
        tokens=settings.features,
        masked_weight=settings.masked_weight,
        distill_weight=settings.distill_weight,
    )


METHOD = Method(pretrain, Settings)
