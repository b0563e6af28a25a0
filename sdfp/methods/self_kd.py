"""Row "Self-KD": knowledge distillation from the same model, fine-tuned first.

Yuan, Tay, Li, Wang, Feng: Revisiting Knowledge Distillation via Label Smoothing Regularization,
CVPR 2020 (Tf-KD_self); Furlanello et al.: Born-Again Neural Networks, ICML 2018. The loss, its
variant and its published values are those of row "KD" (kd.py); the teacher is what this row would
be without a teacher. The values of configs/ are our choice.
"""

from dataclasses import dataclass

from sdfp.methods import kd
from sdfp.methods.interface import Method, Teacher, Teachers
from sdfp.models.interface import Backbone
from sdfp.settings import number
from sdfp.types import LossFn


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.self_kd`."""

    alpha: float = number(0, 1)
    temperature: float = number(above=0)


def teacher(teachers: Teachers, settings: Settings) -> Teacher:
    del settings
    return teachers.same()


def finetune_loss(backbone: Backbone, settings: Settings) -> LossFn:
    return kd.distillation_loss(backbone, settings.alpha, settings.temperature)


METHOD = Method(settings=Settings, teacher=teacher, finetune_loss=finetune_loss)
