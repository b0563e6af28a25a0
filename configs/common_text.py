"""Every key of a run on texts, with the defaults for RoBERTa-base.

[paper] marks what Lee et al. 2023 say, [TAPT] what the recipe that they follow says (Gururangan et
al. 2020 and the defaults of its public commands). Both give epochs; a stage has steps:

    steps = epochs * ceil(training texts / batch_size)

Other configs take this one, call `epochs` with their number of training texts, and change a few
values. Any value can be changed on the command line: `--config.stages.finetune.steps=500`.
"""

from ml_collections import ConfigDict

from configs import common

# Encoders of RoBERTa (Liu et al. 2019, table 9).
ROBERTA_SIZES = {
    "base": {"dim": 768, "depth": 12, "heads": 12, "mlp_dim": 3072},
    "large": {"dim": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096},
}


def get_config(variant: str = "full") -> ConfigDict:
    """RoBERTa-base from its published weights, for 2,000 texts of your own."""
    config = common.get_config()
    config.name = "text"
    config.model = roberta("base")
    config.init.kind, config.init.weights = "weights", "FacebookAI/roberta-base"
    config.method.kd.weights = "FacebookAI/roberta-large"
    config.data, config.source = text_data(config), text_data(config)
    for name in ("pretrain", "further_pretrain", "self_distill"):
        config.stages[name] = masked_recipe()
    config.stages.finetune = finetune_recipe()
    config.run.masked_loss = True
    epochs(config, texts=2000)
    return choose(config, variant)


def text_data(config: ConfigDict) -> ConfigDict:
    return ConfigDict(
        {
            "name": "text_file",  # see sdfp/data/registry.py
            "dir": "",
            "source": "files",
            # Folder or Hugging Face id, by default that of the weights; "" = learn a byte-level BPE
            # of `vocab_size` entries from the training texts.
            "tokenizer": config.init.get_oneway_ref("weights"),
            "tokenizer_revision": config.init.get_oneway_ref("revision"),
            "vocab_size": config.model.get_oneway_ref("vocab_size"),
            "max_length": 512,  # tokens, <s> and </s> counted; longer texts lose their end [TAPT]
            "text_column": "text",  # of .csv, .tsv and .jsonl files
            "label_column": "label",  # "" = no labels: the masked stages only
            "test_fraction": 0.0,  # cut from train where the data set has no test split
            "validation_fraction": 0.0,  # cut from train, for selection
            "train_labels": 0,  # label budget, stratified; 0 = all
            "split_seed": 0,  # of the three cuts
        }
    )


def roberta(size: str) -> ConfigDict:
    """RoBERTa. With init.kind=weights the file's own config decides the architecture."""
    config = ConfigDict(
        {
            "name": "roberta",  # see sdfp/models/registry.py
            "vocab_size": 50_265,
            "max_positions": 514,  # two more than the longest text has tokens
            **ROBERTA_SIZES[size],
            "layer_norm_eps": 1e-5,
            "bos_id": 0,
            "pad_id": 1,
            "eos_id": 2,
            "mask_rate": 0.15,  # 80% <mask>, 10% a random word, 10% as it was [paper]
            "dropout_pretrain": 0.1,  # RoBERTa's own, as the next three [TAPT]
            "dropout_finetune": 0.1,
            "attention_dropout_pretrain": 0.1,
            "attention_dropout_finetune": 0.1,
        }
    )
    config.mask_id = config.get_oneway_ref("vocab_size") - 1  # <mask> is the last entry
    return config


def masked_recipe() -> ConfigDict:
    """Further pre-training and self-distillation."""
    recipe = common.masked_recipe()
    recipe.update(
        {
            "batch_size": 128,  # [paper]
            "learning_rate": 1e-4,  # linear to 0 [TAPT]
            "beta2": 0.999,  # [TAPT]
            "weight_decay": 0.0,  # [TAPT]
            "frozen": (),
            "clip_norm": 1.0,  # [TAPT]
        }
    )
    return recipe


def finetune_recipe() -> ConfigDict:
    """Fine-tuning. TAPT also stops early on dev; here, as in the paper, the last step counts."""
    recipe = common.finetune_recipe()
    recipe.update(
        {
            "batch_size": 32,  # [paper]; TAPT has 16
            "learning_rate": 2e-5,  # [TAPT]
            "beta2": 0.98,  # [TAPT]
            "epsilon": 1e-6,  # [TAPT]
            "weight_decay": 0.1,  # [TAPT]
            "no_decay": ("bias", "scale"),  # [TAPT]
            "clip_norm": 1.0,  # [TAPT]
            "augment": False,  # texts have no augmentation
        }
    )
    return recipe


def epochs(config: ConfigDict, texts: int) -> None:
    """Sets the steps: 100 epochs of masked training, 10 of fine-tuning [paper], of which the first
    6% warm up [TAPT]. The probe looks at a masked stage before it and 8 times in it."""
    for name, recipe in config.stages.items():
        count = 10 if name == "finetune" else 100
        recipe.steps = count * -(-texts // recipe.batch_size)
    config.stages.finetune.warmup_steps = round(0.06 * config.stages.finetune.steps)
    probes(config, 8)


def probes(config: ConfigDict, count: int) -> None:
    """Sets `run.probe_every` so that further pre-training has so many probes behind the first."""
    config.run.probe_every = -(-config.stages.further_pretrain.steps // count)


def choose(config: ConfigDict, name: str) -> ConfigDict:
    """The part of --config behind the colon: "full" (also where there is none), "small", or
    "smoke": a tiny version that takes every path, 2 steps a stage, from scratch."""
    if name == "full":
        return config
    if name == "small":
        return small(config)
    common.few_steps(config, name)
    # 261: bytes and special tokens, a vocabulary that any text is enough for.
    config.model.update({"vocab_size": 261, "max_positions": 130})
    config.model.update({"dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64})
    config.data.max_length = config.source.max_length = 128
    return config


def small(config: ConfigDict) -> ConfigDict:
    """For a laptop without weights: a small model from scratch with a tokenizer of its own, 20
    masked epochs and 5 of fine-tuning. It shows that everything works, not how well."""
    config.name += "_small"
    config.seeds = (0, 1)
    config.init.kind, config.init.weights = "scratch", ""
    config.method.kd.weights = ""
    config.method.recadam.penalty = 500.0  # times the learning rate below 2, or it diverges
    config.model.update({"vocab_size": 4000, "max_positions": 258})
    config.model.update({"dim": 64, "depth": 4, "heads": 4, "mlp_dim": 256})
    no_dropout(config)
    config.data.max_length = config.source.max_length = 256
    for name, recipe in config.stages.items():
        recipe.learning_rate = 1e-3
        recipe.steps = -(-recipe.steps // (2 if name == "finetune" else 5))
    probes(config, 4)
    return config


def no_dropout(config: ConfigDict) -> None:
    """Dropout slows a small model more than it helps it."""
    for name in config.model:
        if "dropout" in name:
            config.model[name] = 0.0
