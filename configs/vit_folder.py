"""Your own images, with ViT-B/16 and the authors' recipe.

    python -m sdfp.main --config configs/vit_folder.py --config.data.dir=/data/xrays

`dir` holds train/<class>/* and test/<class>/*, or train.csv and test.csv with the columns
path,label, or only <class>/* (then add --config.data.test_fraction=0.2). Images below
dir/unlabelled, if any, are what the masked stages see. `:small` is a small model at 32 x 32 for a
laptop, from scratch or from the weights of configs/vit_source.py; `:smoke` a tiny one with 2 steps
a stage.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.get_config()
    config.name = "vit_folder"
    common.published_weights(config)
    return common.variant(config, variant)
