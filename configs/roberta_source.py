"""A small RoBERTa of your own, from texts without labels: a start for the `:small` variants.

    python -m sdfp.main --config configs/roberta_source.py
    python -m sdfp.export --workdir runs/roberta_source --stage further_pretrain --out small_roberta
    python -m sdfp.main --config configs/roberta_scierc.py:small --config.data.dir=/data \\
        --config.init.kind=weights --config.init.weights=small_roberta

The texts are 20,000 paragraphs of the docstrings of the installed scientific packages; others:
--config.data.name=text_file --config.data.dir=FOLDER with a train.txt, a text per line. The
tokenizer is learnt from them.
"""

from configs import common_text


def get_config(variant: str = "full"):
    config = common_text.small(common_text.get_config())
    config.name = "roberta_source"
    config.methods = ("further_pretrain",)
    config.data.name = "package_docstrings"
    config.model.update({"dim": 128, "mlp_dim": 512})
    config.stages.further_pretrain.update({"steps": 3000, "batch_size": 128, "warmup_steps": 200})
    config.stages.further_pretrain.learning_rate = 2e-3
    return config if variant == "small" else common_text.choose(config, variant)
