"""FGVC Aircraft (variants) with ViT-B/16, the authors' recipe.

    python -m sdfp.data.fetch aircraft --dir /data
    python -m sdfp.main --config configs/vit_aircraft.py --config.data.dir=/data

`:small` is a small model at 32 x 32 for a laptop, from scratch or from the weights of
configs/vit_source.py; `:smoke` a tiny one with 2 steps a stage:

    python -m sdfp.main --config configs/vit_aircraft.py:smoke --config.data.dir=/data

Published accuracy, mean ± std of 5 fine-tuning runs (the paper's figures, not ours): RecAdam
70.76 ± 1.25, MARS 72.74 ± 0.57, R3F 72.95 ± 0.46, further pre-training 73.38 ± 0.64; the paper
has self-distillation above all of them. This project has not run it at full size yet.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.get_config()
    config.name = "vit_aircraft"
    config.data.name = "aircraft"
    common.published_weights(config)
    return common.variant(config, variant)
