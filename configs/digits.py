"""The default: handwritten digits with few labels, from theta_init made on two photographs.

    python -m sdfp.main

Needs no network and no files: scikit-learn brings the digits (8 x 8) and the photographs. The
steps of the masked stages were chosen from 1,500 and 6,000 on 500 validation digits, see
docs/results.md. Test accuracy of the command above, mean ± std of 5 seeds, jax 0.10.2 on a CPU:
finetune 85.97 ± 1.07, further_pretrain 86.25 ± 0.57, self_distillation 89.18 ± 0.84.
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
    # Patches of 2 x 2 are mostly constant: normalising them would divide by nearly nothing.
    config.model.update(
        {"image_size": 8, "channels": 1, "patch_size": 2, "normalize_targets": False}
        | {"dim": 64, "depth": 4, "heads": 4, "mlp_dim": 256}
        | {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2, "decoder_mlp_dim": 128}
    )
    stages = config.stages
    stages.pretrain.update({"steps": 2000, "batch_size": 128, "learning_rate": 1e-3})
    stages.pretrain.warmup_steps = 100
    for recipe in (stages.further_pretrain, stages.self_distill):
        recipe.update({"steps": 6000, "learning_rate": 5e-4})
    stages.finetune.update({"steps": 300, "warmup_steps": 30, "learning_rate": 1e-3})
    stages.finetune.augment = False  # a mirrored digit is no digit
    # The published ones are for a learning rate of at most 4e-4, and for more steps.
    config.method.recadam.update({"penalty": 1000.0, "midpoint": 100})
    config.run.steps_per_call, config.run.probe_every = 50, 500
    return config if variant == "small" else common.variant(config, variant)
