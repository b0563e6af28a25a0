"""Texts without network, weights or files: docstrings of the standard library, told apart by their
package, from theta_init made on docstrings of the installed scientific packages.

    python -m sdfp.main --config configs/docstrings.py

Source files are read with `ast`, never imported. The tokenizer is learnt on the spot. Test
macro-F1, mean ± std of 5 seeds, 9 packages, Python 3.11.7, jax 0.10.2: finetune 57.30 ± 2.43,
further_pretrain 58.66 ± 1.11, self_distillation 59.35 ± 2.43, by

    python -m sdfp.table --config configs/docstrings.py --methods all --seeds 5

Other Python or package versions have other docstrings; results.json has the corpus' fingerprint.
The fine-tuning rate was chosen from four on a validation part, see docs/results.md.
"""

from configs import common_text


def get_config(variant: str = "full"):
    config = common_text.get_config()
    config.name = "docstrings"
    config.seeds = (0, 1, 2)
    config.data.name, config.source.name = "docstrings", "package_docstrings"
    config.init.kind, config.init.weights = "pretrain", ""
    config.method.kd.weights = ""
    config.model.update({"vocab_size": 2000, "max_positions": 66})
    config.model.update({"dim": 64, "depth": 4, "heads": 2, "mlp_dim": 256})
    common_text.no_dropout(config)
    config.data.max_length = config.source.max_length = 64
    stages = config.stages
    stages.pretrain.update({"steps": 1500, "batch_size": 64, "learning_rate": 3e-3})
    stages.pretrain.warmup_steps = 100
    for recipe in (stages.further_pretrain, stages.self_distill):
        recipe.update({"steps": 300, "batch_size": 64, "learning_rate": 1e-3})
    stages.finetune.update({"steps": 250, "warmup_steps": 25, "learning_rate": 2e-3})
    # The published ones are for a learning rate of at most 4e-4, and for more steps.
    config.method.recadam.update({"penalty": 500.0, "midpoint": 100})
    config.run.probe_every = 100
    return config if variant == "small" else common_text.choose(config, variant)
