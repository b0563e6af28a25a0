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

# Runs a command, and again while it was only interrupted: 143 (asked to stop: it saved), 134, 137 or
# 139 (another process of the run is gone, which JAX may crash of, or the system killed this one). 0 is
# done; 1 (a fault) and 2 (a mistake to mend) would only come again. A run that dies time after time and
# comes no further ends with 2 by itself (sdfp/lock.py).
#
# TERM and Ctrl-C of this script reach the command as TERM (a job of a script does not hear INT);
# its end is waited for, and it is not started again.
to_the_end() {
  local status code interrupted child='' asked=0 tries=0 most="${SDFP_RESTARTS:-100}"
  if ((DRY_RUN)); then
    act "$@"
    return
  fi
  pass_on() {
    asked=$1 interrupted=1
    if [[ -n "${child:-}" ]]; then kill -s TERM "$child" 2>/dev/null || true; fi
  }
  trap 'pass_on 143' TERM
  trap 'pass_on 130' INT
  while :; do
    "$@" &
    child=$!
    if ((asked)); then pass_on "$asked"; fi # it came between two runs
    status=127 interrupted=1
    while ((interrupted)); do # a signal ends `wait`, not the command
      interrupted=0 code=0
      wait "$child" || code=$?
      if ((code != 127)); then status=$code; fi # 127: its end was told before
    done
    child=''
    if ((asked && status == 143)); then return "$asked"; fi
    if ((asked || tries++ >= most)); then return "$status"; fi
    case $status in
      134 | 137 | 139 | 143) say "ended with $status: goes on (restart $tries of $most at most)" ;;
      *) return "$status" ;;
    esac
  done
}
