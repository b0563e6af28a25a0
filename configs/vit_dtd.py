"""Describable Textures, split 1, with ViT-B/16, the authors' recipe.

    python -m sdfp.data.fetch dtd --dir /data
    python -m sdfp.main --config configs/vit_dtd.py --config.data.dir=/data

`:small` is a small model at 32 x 32 for a laptop, from scratch or from the weights of
configs/vit_source.py; `:smoke` a tiny one with 2 steps a stage:

    python -m sdfp.main --config configs/vit_dtd.py:smoke --config.data.dir=/data

Published accuracy, mean ± std of 5 fine-tuning runs (the paper's figures, not ours): fine-tuning
67.56 ± 0.52, RecAdam 67.59 ± 1.03, MARS 66.79 ± 0.90, R3F 65.32 ± 1.25, further pre-training
65.55 ± 1.12; the paper has self-distillation above all of them. This project has not run it at
full size yet.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.get_config()
    config.name = "vit_dtd"
    config.data.name = "dtd"
    common.published_weights(config)
    return common.variant(config, variant)
