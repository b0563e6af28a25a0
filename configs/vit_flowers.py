"""Oxford 102 Flowers with ViT-B/16, the authors' recipe.

    python -m sdfp.data.fetch flowers --dir /data
    python -m sdfp.main --config configs/vit_flowers.py --config.data.dir=/data

`:small` is a small model at 32 x 32 for a laptop, from scratch or from the weights of
configs/vit_source.py; `:smoke` a tiny one with 2 steps a stage:

    python -m sdfp.main --config configs/vit_flowers.py:smoke --config.data.dir=/data

Published accuracy, mean ± std of 5 fine-tuning runs (the paper's figures, not ours): fine-tuning
88.78 ± 0.65, RecAdam 88.97 ± 0.44, MARS 87.93 ± 1.21, R3F 88.92 ± 0.78, further pre-training
88.63 ± 0.35; the paper has self-distillation above all of them. This project has not run it at
full size yet.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.get_config()
    config.name = "vit_flowers"
    config.data.name = "flowers"
    common.published_weights(config)
    return common.variant(config, variant)
