"""A small ViT-MAE of your own, from images without labels: a start for the `:small` variants.

    mkdir -p /data/source/unlabelled && tar -xf tiny_imagenet_20k.tar -C /data/source/unlabelled
    python -m sdfp.main --config configs/vit_source.py --config.data.dir=/data/source
    python -m sdfp.export --workdir runs/vit_source --stage further_pretrain --out small_mae
    python -m sdfp.main --config configs/vit_cub.py:small --config.data.dir=/data \\
        --config.init.kind=weights --config.init.weights=small_mae

Any folder of images will do; all below unlabelled/ are used, at 32 x 32.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.small(common.get_config())
    config.name = "vit_source"
    config.methods = ("further_pretrain",)
    config.data.name = "image_folder"
    config.stages.further_pretrain.update(
        {"steps": 3000, "batch_size": 256, "learning_rate": 1.5e-3, "warmup_steps": 200}
        | {"weight_decay": 0.05, "augment": True}
    )
    return config if variant == "small" else common.variant(config, variant)
