#!/usr/bin/env bash
# A run on this node's NVIDIA GPUs: one process has all of them.
#
#   launch/gpu_node.sh [--dry-run] -m sdfp.main --config configs/vit_cub.py --config.data.dir=/data
#
# What follows is what python gets. Pre-empted or killed, it goes on by itself; TERM of this script
# is passed on: see README.md.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ "${1:-}" == --dry-run ]]; then
  DRY_RUN=1
  shift
fi
(($#)) || fail "what to run? e.g. launch/gpu_node.sh -m sdfp.main --config configs/vit_cub.py"

# JAX takes three quarters of the memory unless told otherwise.
command=(env "XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
  "${PYTHON:-python}" "$@")
if ((!DRY_RUN)) && ! command -v nvidia-smi >/dev/null; then
  fail "no nvidia-smi here: is this a GPU node with a driver?"
fi
to_the_end "${command[@]}"
