"""CIFAR-100 with 1,000 labels and ViT-B/16, the authors' recipe: the low-resource study.

    python -m sdfp.data.fetch cifar100 --dir /data
    for n in 1000 2500 5000 10000 25000 50000; do
      python -m sdfp.main --config configs/vit_cifar100.py --workdir runs/cifar100_$n \\
        --config.data.dir=/data --config.data.train_labels=$n
    done

The masked stages see the same n examples, without their labels; a smaller cut is part of every
larger one. `:small` is a small model at 32 x 32 for a laptop, from scratch or from the weights of
configs/vit_source.py; `:smoke` a tiny one with 2 steps a stage:

    python -m sdfp.main --config configs/vit_cifar100.py:smoke --config.data.dir=/data

Published (the paper's figures, not ours): self-distillation is 13 points above fine-tuning with
1,000 labels and 6 points with 2,500. This project has not run it at full size yet.
"""

from configs import common


def get_config(variant: str = "full"):
    config = common.get_config()
    config.name = "vit_cifar100"
    config.data.name = "cifar100"
    config.data.train_labels = 1000
    common.published_weights(config)
    return common.variant(config, variant)
