"""CUB-200-2011 with ViT-B/16, the authors' recipe.

    python -m sdfp.main --config configs/vit_cub.py --config.data.dir=/data/CUB_200_2011

`:smoke` is a tiny model, 2 steps a stage:

    python -m sdfp.main --config configs/vit_cub.py:smoke --config.data.dir=/data/CUB_200_2011

Published accuracy, mean ± std of 5 fine-tuning runs (the paper's figures, not ours):
fine-tuning 55.55 ± 0.54, further pre-training 55.72 ± 0.46; the paper has self-distillation
above both. This project has not run it at full size yet.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.get_config()
    config.name = "vit_cub"
    config.data.name = "cub"
    common.published_weights(config)
    return common.variant(config, variant)
