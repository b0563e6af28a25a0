#!/usr/bin/env bash
# A run on Kubernetes with GPUs, as a JobSet (https://jobset.sigs.k8s.io): jobset.yaml, filled in.
#
#   launch/kubernetes.sh [--dry-run] NAME IMAGE PODS GPUS [VOLUME_CLAIM] \
#       -- -m sdfp.main --config configs/vit_cub.py --config.data.dir=/data --workdir /data/runs/cub
#
# PODS pods of GPUS GPUs each, one process per pod; IMAGE holds sdfp and its packages; the claim is
# mounted at /data. --dry-run prints the YAML. Pre-empted pods (143, or a node that goes away) start
# again and go on; 1 and 2 end the job: see README.md.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/common.sh"

if [[ "${1:-}" == --dry-run ]]; then
  DRY_RUN=1
  shift
fi
given=()
while (($#)) && [[ "$1" != -- ]]; do
  given+=("$1")
  shift
done
((${#given[@]} == 4 || ${#given[@]} == 5)) || fail "NAME IMAGE PODS GPUS [VOLUME_CLAIM] -- -m sdfp.main ..."
(($# > 1)) || fail "what to run? ... -- -m sdfp.main --config configs/vit_cub.py"
shift
name=${given[0]} image=${given[1]} pods=${given[2]} gpus=${given[3]} claim=${given[4]:-sdfp-data}
for word in "$name" "$claim"; do
  [[ "$word" =~ ^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$ ]] || fail "$word: a letter, then lower-case letters, digits, -; at most 42"
done
[[ "$image" =~ ^[A-Za-z0-9./:@_-]+$ ]] || fail "$image: an image, e.g. registry.example/sdfp:1"
for number in "$pods" "$gpus"; do
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || fail "$number: a number of pods, of GPUs"
done
restarts="${SDFP_RESTARTS:-100}"
[[ "$restarts" =~ ^[0-9]+$ ]] || fail "SDFP_RESTARTS=$restarts: how often it may start again"

# shellcheck disable=SC2016 # JSON is YAML, and quotes whatever the arguments hold. Kubernetes reads $(NAME), and $$ as $.
arguments="$(python3 -c 'import json, sys; print(json.dumps([a.replace("$", "$$") for a in sys.argv[1:]], ensure_ascii=False))' "$@")"
text="$(<"$here/jobset.yaml")"
text="${text//@NAME@/$name}"
text="${text//@IMAGE@/$image}"
text="${text//@PODS@/$pods}"
text="${text//@GPUS@/$gpus}"
text="${text//@CLAIM@/$claim}"
text="${text//@RESTARTS@/$restarts}"
before="${text%%@ARGUMENTS@*}" after="${text#*@ARGUMENTS@}" # not replaced: & and \ are the user's
text="$before$arguments$after"
if ((DRY_RUN)); then printf '%s\n' "$text"; else kubectl apply -f - <<<"$text"; fi
