"""SciERC with RoBERTa-base: 3,219 training sentences, 7 relations, macro-F1.

    python -m sdfp.data.fetch scierc --dir /data
    python -m sdfp.main --config configs/roberta_scierc.py --config.data.dir=/data

`:small` is a small model from scratch for a laptop, `:smoke` a tiny one with 2 steps a stage:

    python -m sdfp.main --config configs/roberta_scierc.py:small --config.data.dir=/data

The recipe is that of configs/common_text.py. The paper has self-distillation above fine-tuning and
further pre-training here; its figures are not in the text that we have. This project has not run
the published weights on it yet.
"""

from configs import common_text


def get_config(variant: str = "full"):
    config = common_text.get_config()
    config.name = "roberta_scierc"
    config.data.name = "scierc"
    common_text.epochs(config, texts=3_219)
    return common_text.choose(config, variant)
