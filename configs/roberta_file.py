"""Your own texts, with RoBERTa-base and the recipe of configs/common_text.py.

    python -m sdfp.main --config configs/roberta_file.py --config.data.dir=/data/abstracts

`dir` holds train.csv (or .tsv, .jsonl) with the columns text and label, and test.csv; without a
test file add --config.data.test_fraction=0.2. Other names: --config.data.text_column=abstract.
Texts in unlabelled.txt (one per line) or unlabelled.csv, if any, are what the masked stages see
in place of those in train.
Without labels (train.txt, or --config.data.label_column=) only the masked stages run.

The steps are those for 2,000 texts: 100 epochs of batches of 128 and 10 epochs of 32. For n texts:

    --config.stages.further_pretrain.steps=S  and .self_distill.steps=S   S = 100 * ceil(n / 128)
    --config.stages.finetune.steps=F                                      F = 10 * ceil(n / 32)

`:small` is a small model from scratch for a laptop (no download), `:smoke` a tiny one with 2 steps
a stage, whose tokens are bytes.
"""

from configs import common_text


def get_config(variant: str = "full"):
    config = common_text.get_config()
    config.name = "roberta_file"
    return common_text.choose(config, variant)
