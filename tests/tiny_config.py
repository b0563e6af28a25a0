"""A run of seconds that takes every kind of stage: for test_resume.py."""

from configs import digits


def get_config():
    config = digits.get_config("smoke")
    config.name = "tiny"
    config.seeds = (0,)
    config.methods = ("further_pretrain", "self_distillation")
    config.data.cache_dir = config.source.cache_dir = ""
    for block in (config.data, config.source, config.model):
        block.image_size = 8
    config.model.update({"patch_size": 4, "dim": 16, "depth": 1, "mlp_dim": 16})
    config.model.update({"decoder_dim": 8, "decoder_mlp_dim": 8})
    config.data.train_labels = 40
    for recipe in config.stages.values():
        recipe.update({"steps": 8, "learning_rate": 1e-3})
    config.stages.finetune.augment = True
    config.parallel.devices = 1
    config.run.update({"log_every": 2, "checkpoint_every": 2, "steps_per_call": 2})
    config.run.probe_every = 3  # between checkpoints, and within a call
    return config
