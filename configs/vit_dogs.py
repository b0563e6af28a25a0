"""Stanford Dogs with ViT-B/16, the authors' recipe.

    python -m sdfp.data.fetch dogs --dir /data
    python -m sdfp.main --config configs/vit_dogs.py --config.data.dir=/data

`:small` is a small model at 32 x 32 for a laptop, from scratch or from the weights of
configs/vit_source.py; `:smoke` a tiny one with 2 steps a stage:

    python -m sdfp.main --config configs/vit_dogs.py:smoke --config.data.dir=/data

Published accuracy, mean ± std of 5 fine-tuning runs (the paper's figures, not ours): fine-tuning
62.53 ± 0.57, RecAdam 61.65 ± 0.92, MARS 62.24 ± 0.96, R3F 62.15 ± 0.48, further pre-training
62.34 ± 0.39; the paper has self-distillation above all of them. This project has not run it at
full size yet.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.get_config()
    config.name = "vit_dogs"
    config.data.name = "dogs"
    common.published_weights(config)
    return common.variant(config, variant)
