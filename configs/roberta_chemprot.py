"""ChemProt with RoBERTa-base: 4,169 training sentences, 13 relations, micro-F1.

    python -m sdfp.main --config configs/roberta_chemprot.py --config.data.dir=/data

/data/chemprot must hold train.txt, dev.txt and test.txt from
https://github.com/allenai/scibert/tree/master/data/text_classification/chemprot: their digests are
not known here, so there is no verified download.

`:small` is a small model from scratch for a laptop, `:smoke` a tiny one with 2 steps a stage:

    python -m sdfp.main --config configs/roberta_chemprot.py:small --config.data.dir=/data

The recipe is that of configs/common_text.py. The paper has self-distillation above fine-tuning and
further pre-training here; its figures are not in the text that we have. This project has not run
the published weights on it yet.
"""

from configs import common_text


def get_config(variant: str = "full"):
    config = common_text.get_config()
    config.name = "roberta_chemprot"
    config.data.name = "chemprot"
    common_text.epochs(config, texts=4_169)
    return common_text.choose(config, variant)
