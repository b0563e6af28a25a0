#!/usr/bin/env bash
# The runs of docs/results.md, in their order. A command that was interrupted goes on where it was.
#
#     bash docs/results/run.sh DATA [WORK]
#
# DATA holds source/unlabelled (the images of tiny_imagenet_20k.tar), cub (CUB-200-2011's layout),
# cifar100 (the original pickles), scierc and twitter_emotion; WORK gets the work directories (default:
# runs). A table with a failed cell does not stop the others.
set -uo pipefail
data=$(realpath "${1:?"the folder with the data, see this file"}")
work=$(realpath -m "${2:-runs}")
cd "$(dirname "$0")/../.."

table() { # NAME CONFIG [ARGUMENT ...]
  python -m sdfp.table --config "configs/$2" --workdir "$work/$1" "${@:3}" || failed+=("$1")
}
source_model() { # NAME CONFIG [ARGUMENT ...]: theta_init of one's own, exported to WORK/NAME.model
  [ -e "$work/$1.model" ] && return
  python -m sdfp.main --config "configs/$2" --workdir "$work/$1" "${@:3}" &&
    python -m sdfp.export --workdir "$work/$1" --stage further_pretrain --out "$work/$1.model"
}
failed=()

# 1. The embedded defaults.
table digits digits.py --methods all --seeds 5
table docstrings docstrings.py --methods all --seeds 5

# 2. A small ViT-MAE.
source_model vit_source vit_source.py --config.data.dir="$data/source" || exit
paper=(--methods paper --seeds 3 --config.init.kind=weights)
from=--config.init.weights="$work/vit_source.model"
table cub vit_cub.py:small --config.data.dir="$data/cub" "${paper[@]}" "$from"
for n in 1000 5000; do
  table cifar100_$n vit_cifar100.py:small --config.data.dir="$data/cifar100" "${paper[@]}" "$from" \
    --config.data.train_labels=$n --config.name=cifar100_$n
done

# 3. A small RoBERTa.
source_model roberta_source roberta_source.py || exit
from=--config.init.weights="$work/roberta_source.model"
for name in scierc twitter_emotion; do
  table $name roberta_$name.py:small --config.data.dir="$data/$name" "${paper[@]}" "$from"
done

[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}" >&2; exit 1; }
