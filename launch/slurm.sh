#!/usr/bin/env bash
# A run on SLURM: one process per GPU, on any number of nodes. Submits itself.
#
#   launch/slurm.sh [--dry-run] --nodes=2 --gpus-per-node=8 [other options of sbatch] \
#       -- -m sdfp.main --config configs/vit_cub.py --config.data.dir=/data
#
# What follows `--` is what python gets. Every process sees all GPUs of its node and takes one, as
# JAX expects under SLURM (so not --gpus-per-task). Two minutes before the time limit, and when
# it is pre-empted, the run saves, and the job is queued again: see README.md.
set -euo pipefail

if [[ -n "${SLURM_JOB_ID:-}" && "${1:-}" == --inside ]]; then
  shift
  # The run's processes get TERM from SLURM; this script must outlive them. It gets one itself where
  # the whole job is to end (scancel): before the time limit and a pre-emption only the tasks do.
  asked=0
  trap 'asked=1' TERM
  # srun returns the highest code of all tasks: a fault must count for more than the 143, 139, 137 or
  # 134 of those that were stopped, or lost the others, because of it. TERM reaches the task's shell,
  # too, which must wait for the save.
  # shellcheck disable=SC2016
  ranked='trap : TERM; "$@"; case $? in 0) ;; 134 | 137 | 139 | 143) exit 10 ;; *) exit 101 ;; esac'
  status=0
  srun --kill-on-bad-exit=1 bash -c "$ranked" task "${PYTHON:-python}" "$@" || status=$?
  if ((status == 10 && !asked && ${SLURM_RESTART_COUNT:-0} < ${SDFP_RESTARTS:-100})); then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
  exit "$status"
fi

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if [[ "${1:-}" == --dry-run ]]; then
  DRY_RUN=1
  shift
fi
options=()
gpus=1
while (($#)) && [[ "$1" != -- ]]; do
  case "$1" in
    --gpus-per-node=*)
      gpus="${1#*=}"
      [[ "$gpus" =~ ^[1-9][0-9]*$ ]] || fail "$1: a number, e.g. --gpus-per-node=8"
      ;;
    --gpus-per-task*) fail "$1: give --gpus-per-node; each process must see its node's GPUs" ;;
    --*=* | --[a-z]*) options+=("$1") ;;
    *) fail "$1: options of sbatch as --name=value, then -- and what python gets" ;;
  esac
  shift
done
(($# > 1)) || fail "what to run? ... -- -m sdfp.main --config configs/vit_cub.py"
shift
act sbatch --job-name=sdfp "--gres=gpu:$gpus" "--ntasks-per-node=$gpus" --signal=TERM@120 \
  --requeue --open-mode=append "${options[@]}" \
  "$(realpath "${BASH_SOURCE[0]}")" --inside "$@"
