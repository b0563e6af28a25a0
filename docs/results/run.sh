#!/usr/bin/env bash
# The runs of docs/results.md, in their order. A command that was interrupted goes on where it was.
#
#     bash docs/results/run.sh DATA [WORK]
#
# DATA holds source/unlabelled (images of tiny_imagenet_20k.tar), cub (CUB-200-2011's layout), cifar100
# (the original pickles), scierc and twitter_emotion; WORK gets the work directories (default: runs).
set -euo pipefail
data=${1:?"the folder with the data, see this file"}
work=${2:-runs}

table() { # NAME CONFIG [ARGUMENT ...]
  python -m sdfp.table --config "configs/$2" --workdir "$work/$1" "${@:3}"
}
weights() { echo "--config.init.kind=weights --config.init.weights=$work/$1"; }

# 1. The embedded defaults.
table digits digits.py --methods all --seeds 5
table docstrings docstrings.py --methods all --seeds 5

# 2. A small ViT-MAE.
python -m sdfp.main --config configs/vit_source.py --config.data.dir="$data/source" --workdir "$work/vit_source"
[ -e "$work/small_mae" ] ||
  python -m sdfp.export --workdir "$work/vit_source" --stage further_pretrain --out "$work/small_mae"
paper="--methods paper --seeds 3 $(weights small_mae)"
table cub_small vit_cub.py:small --config.data.dir="$data/cub" $paper
table cifar100_1000_small vit_cifar100.py:small --config.data.dir="$data/cifar100" $paper
table cifar100_5000_small vit_cifar100.py:small --config.data.dir="$data/cifar100" $paper \
  --config.data.train_labels=5000 --config.name=vit_cifar100_5000_small

# 3. A small RoBERTa.
python -m sdfp.main --config configs/roberta_source.py --workdir "$work/roberta_source"
[ -e "$work/small_roberta" ] ||
  python -m sdfp.export --workdir "$work/roberta_source" --stage further_pretrain --out "$work/small_roberta"
paper="--methods paper --seeds 3 $(weights small_roberta)"
table scierc_small roberta_scierc.py:small --config.data.dir="$data/scierc" $paper
table twitter_emotion_small roberta_twitter_emotion.py:small --config.data.dir="$data/twitter_emotion" $paper
