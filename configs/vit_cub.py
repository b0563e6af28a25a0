"""CUB-200-2011 with ViT-B/16, the authors' recipe.

    python -m sdfp.data.fetch cub --dir /data
    python -m sdfp.main --config configs/vit_cub.py --config.data.dir=/data

`:small` is a small model at 32 x 32 for a laptop, from scratch or from the weights of
configs/vit_source.py; `:smoke` a tiny one with 2 steps a stage:

    python -m sdfp.main --config configs/vit_cub.py:smoke --config.data.dir=/data

Published accuracy, mean ± std of 5 fine-tuning runs (the paper's figures, not ours): fine-tuning
55.55 ± 0.54, RecAdam 55.22 ± 1.29, MARS 55.35 ± 0.73, R3F 55.91 ± 0.79, further pre-training
55.72 ± 0.46; the paper has self-distillation above all of them. This project has not run it at
full size yet.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.get_config()
    config.name = "vit_cub"
    config.data.name = "cub"
    common.published_weights(config)
    return common.variant(config, variant)
