#!/usr/bin/env bash
# A run on a Cloud TPU VM, or on all hosts of a slice.
#
#   launch/tpu_vm.sh [--dry-run] create NAME ZONE TYPE [--spot]     e.g. sdfp europe-west4-b v5litepod-16
#   launch/tpu_vm.sh [--dry-run] setup  NAME ZONE                    this clone's HEAD and its packages
#   launch/tpu_vm.sh [--dry-run] run    NAME ZONE -m sdfp.main --config configs/vit_cub.py ...
#   launch/tpu_vm.sh [--dry-run] status NAME ZONE
#   launch/tpu_vm.sh [--dry-run] delete NAME ZONE
#
# `run` stays until the run ends and has its exit code (of several hosts gcloud tells the first one
# that failed); pre-empted or killed, it goes on by itself. What it shows is ~/sdfp/run.log of the
# hosts. Needs gcloud, logged in.
# $SDFP_TPU_RUNTIME is the TPU software version (default: one for v5e).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# How: `act` or `to_the_end`.
on_all_hosts() {
  "$1" gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$2"
}

create() {
  (($# >= 1 && $# <= 2)) || fail "create NAME ZONE TYPE [--spot]"
  local options=()
  case "${2:-}" in
    "") ;;
    --spot) options=(--spot) ;;
    *) fail "$2: only --spot is known here" ;;
  esac
  act gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type="$1" --runtime-version="${SDFP_TPU_RUNTIME:-v2-alpha-tpuv5-lite}" \
    "${options[@]}"
}

setup() {
  (($# == 0)) || fail "setup NAME ZONE"
  local root
  root="$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)"
  archive=ARCHIVE
  if ((!DRY_RUN)); then
    archive="$(mktemp)" # a fixed name could be a link of another user
    trap 'rm -f "$archive"' EXIT
  fi
  act git -C "$root" archive --format=tar.gz "--output=$archive" HEAD
  act gcloud compute tpus tpu-vm scp "$archive" "$name:sdfp.tar.gz" --zone="$zone" --worker=all
  on_all_hosts act 'mkdir -p sdfp && tar -xzf sdfp.tar.gz -C sdfp && cd sdfp && python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt "jax[tpu]<0.13"'
}

run() {
  (($#)) || fail "run NAME ZONE -m sdfp.main ..."
  # It outlives the ssh that shows its log and waits for its exit code. A second one beside it would
  # disturb its processes: the lock is free when it has ended.
  local alone="flock -n 9 || { echo 'sdfp: a run goes on here: see ~/sdfp/run.log' >&2; exit 2; }"
  local begin="cd sdfp || exit; exec 9>run.lock; $alone; : >run.log"
  # shellcheck disable=SC2016 # $! is the host's
  local follow='tail --pid=$! -n +1 -f run.log; wait $!'
  on_all_hosts to_the_end \
    "$begin; nohup .venv/bin/python $(quoted "$@") >>run.log 2>&1 & $follow"
}

status() {
  (($# == 0)) || fail "status NAME ZONE"
  act gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)'
}

delete() {
  (($# == 0)) || fail "delete NAME ZONE"
  act gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force
}

if [[ "${1:-}" == --dry-run ]]; then
  DRY_RUN=1
  shift
fi
(($# >= 3)) || fail "create|setup|run|status|delete NAME ZONE ...; see the head of this file"
action=$1 name=$2 zone=$3
shift 3
[[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "$name: a name of lower-case letters, digits, -"
[[ "$zone" =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "$zone: a zone, e.g. europe-west4-b"
case "$action" in
  create | setup | run | status | delete) "$action" "$@" ;;
  *) fail "$action: create, setup, run, status or delete" ;;
esac
