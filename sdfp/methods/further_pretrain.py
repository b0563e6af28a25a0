"""Row "Further pre-training": masked auto-encoding on the target data, then fine-tuning."""

from sdfp import algorithm
from sdfp.methods.interface import Method


def pretrain(init_params, *, backbone, fit, settings):
    del settings
    return algorithm.further_pretraining(init_params, backbone=backbone, fit=fit)


METHOD = Method(pretrain)
