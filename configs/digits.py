"""The default: handwritten digits with few labels, from theta_init made on two photographs.

    python -m sdfp.main

Needs no network and no files: scikit-learn brings the digits (8 x 8) and the photographs.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.get_config()
    config.name = "digits"
    for block, name in ((config.data, "digits"), (config.source, "sklearn_photos")):
        block.name = name
        block.update({"image_size": 8, "channels": 1, "mean": (0.5,), "std": (0.5,)})
    config.data.train_labels = 100
    config.init.kind = "pretrain"
    config.model.update(
        {"image_size": 8, "channels": 1, "patch_size": 2, "normalize_targets": False}
        | {"dim": 64, "depth": 4, "heads": 4, "mlp_dim": 256}
        | {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2, "decoder_mlp_dim": 128}
    )
    return common.variant(config, variant)
