# Shared by the launchers: `source` it. Dry runs, and what exit codes mean.
# shellcheck shell=bash

DRY_RUN=0

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "$(basename "$0"): $*"
  exit 2
}

# The arguments as one line that a shell reads back as the same arguments.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command, or only prints it.
act() {
  if ((DRY_RUN)); then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Runs a command again while it exits with 143 (pre-empted: the same command goes on). 0 is done;
# 1 (a fault) and 2 (a mistake to mend) would only come again.
again_while_preempted() {
  local status tries=0 most="${SDFP_RESTARTS:-100}"
  while :; do
    status=0
    "$@" || status=$?
    if ((status != 143 || tries++ >= most)); then return "$status"; fi
    say "pre-empted: goes on (restart $tries)"
  done
}
