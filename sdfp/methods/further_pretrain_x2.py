"""Row "Further pre-training x 2" of Table 3: the same masked auto-encoding for twice the steps.

The ablation asks whether self-distillation gains by training longer: the teacher's steps and the
student's are as many, without distillation. Our choice: one stage with one schedule over all of
its steps, not two stages after each other (the learning rate falls to 0 once, not twice).
"""

from sdfp import algorithm
from sdfp.methods.interface import Method


def pretrain(init_params, *, backbone, fit, settings):
    del settings
    return fit(
        "further_pretrain_x2",
        algorithm.masked_loss(backbone),
        init_params,
        recipe="further_pretrain",
        stream="further_pretrain",
        times=2,
    )


METHOD = Method(pretrain)
