#!/usr/bin/env bash
# A run of N processes on this machine, to try what several hosts will do.
#
#   launch/local.sh [--dry-run] N -m sdfp.main --config configs/digits.py:smoke
#
# What follows N is what python gets. With NVIDIA GPUs, process i gets GPU i. Each writes
# process_<i>.log into $SDFP_LOGS (default: the current folder); the first one's is shown.
# When one process fails, the others are stopped. Exit code: the first one that is not 0.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [[ "${1:-}" == --dry-run ]]; then
  DRY_RUN=1
  shift
fi
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || fail "how many processes? e.g. launch/local.sh 2 -m sdfp.main"
(($# > 1)) || fail "what to run? e.g. launch/local.sh $1 -m sdfp.main"
count=$1
shift
python="${PYTHON:-python}"
logs="${SDFP_LOGS:-.}"
port=PORT
if ((!DRY_RUN)); then
  port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
  mkdir -p "$logs"
fi

processes=()
# TERM reaches the run's own processes only; each saves and exits with 143.
stop() { ((${#processes[@]} == 0)) || kill -s "$1" "${processes[@]}" 2>/dev/null || true; }
# A signal waits until all are there: those that start later would not hear it, and wait for the
# ones that it stopped.
asked=0
trap 'asked=1' TERM INT

for ((i = 0; i < count; i++)); do
  environment=()
  if command -v nvidia-smi >/dev/null; then environment=("CUDA_VISIBLE_DEVICES=$i"); fi
  command=(env "${environment[@]}" "$python" "$@"
    --coordinator "127.0.0.1:$port" --num_processes "$count" --process_id "$i")
  if ((DRY_RUN)); then
    act "${command[@]}"
  elif ((i == 0)); then
    "${command[@]}" > >(tee "$logs/process_0.log") 2>&1 &
    processes+=($!)
  else
    "${command[@]}" >"$logs/process_$i.log" 2>&1 &
    processes+=($!)
  fi
done
trap 'stop TERM' TERM INT # jobs of a script do not hear INT
if ((asked)); then stop TERM; fi

result=0
left=${#processes[@]}
while ((left)); do
  status=0
  wait -n || status=$?
  # A signal to this script ends `wait`, not the processes.
  running=0
  for process in "${processes[@]}"; do
    if kill -0 "$process" 2>/dev/null; then running=$((running + 1)); fi
  done
  if ((status && running < left && !result)); then
    result=$status
    if ((status != 143 && status != 130)); then
      say "a process failed with $status: the others are stopped; see $logs/process_*.log"
      stop TERM
    fi
  fi
  left=$running
done
# What ended together with another was not seen above.
for process in "${processes[@]}"; do
  status=0
  wait "$process" || status=$?
  if ((!result && status != 127)); then result=$status; fi
done
exit "$result"
