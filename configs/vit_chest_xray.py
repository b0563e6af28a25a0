"""Chest X-rays (Kermany et al., 2018) with ViT-B/16, the authors' recipe.

    python -m sdfp.data.fetch chest_xray --dir /data
    python -m sdfp.main --config configs/vit_chest_xray.py --config.data.dir=/data

`:small` is a small model at 32 x 32 for a laptop, from scratch or from the weights of
configs/vit_source.py; `:smoke` a tiny one with 2 steps a stage:

    python -m sdfp.main --config configs/vit_chest_xray.py:smoke --config.data.dir=/data

Published accuracy, mean ± std of 5 fine-tuning runs (the paper's figures, not ours): fine-tuning
77.15 ± 0.52, RecAdam 77.29 ± 1.32, MARS 77.28 ± 1.80, R3F 76.86 ± 0.97, further pre-training
77.79 ± 2.06; the paper has self-distillation above all of them. This project has not run it at
full size yet.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.get_config()
    config.name = "vit_chest_xray"
    config.data.name = "chest_xray"
    common.published_weights(config)
    return common.variant(config, variant)
