#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# common_test.sh: what the scripts of launch/ share.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../launch/common.sh"
# shellcheck source=tests/launch/expect.sh
source "$root/tests/launch/expect.sh"

scratch=$(mktemp -d)
trap 'rm -rf -- "$scratch"' EXIT

# file PATH CONTENT: of the machine in $scratch.
file() {
  mkdir -p -- "$(dirname -- "$scratch/$1")"
  printf '%b' "$2" >"$scratch/$1"
}
leaves() {
  [[ $(control_group_free_mib "$scratch") == "$1" ]]
}
mib() {
  echo $(($1 * 1048576))
}

expect "no control groups leave what there is" leaves ""
file proc/self/cgroup '0::/user.slice/run\n'
file sys/fs/cgroup/user.slice/run/memory.max 'max\n'
expect "nor does one without a limit" leaves ""
file sys/fs/cgroup/user.slice/memory.max "$(mib 500)\n"
file sys/fs/cgroup/user.slice/memory.current "$(mib 300)\n"
expect "the one around it counts" leaves 200
file sys/fs/cgroup/user.slice/memory.stat "anon 5\nactive_file $(mib 20)\ninactive_file $(mib 30)\n"
expect "caches of files are free" leaves 250
file sys/fs/cgroup/user.slice/run/memory.max "$(mib 100)\n"
file sys/fs/cgroup/user.slice/run/memory.current "$(mib 160)\n"
expect "the least is what is left" leaves 0
file proc/self/cgroup '8:pids:/\n4:memory:/job\n0::/\n'
file sys/fs/cgroup/memory/job/memory.limit_in_bytes "$(mib 64)\n"
file sys/fs/cgroup/memory/job/memory.usage_in_bytes "$(mib 60)\n"
file sys/fs/cgroup/memory/job/memory.stat "active_file 1\ntotal_active_file $(mib 8)\n"
file sys/fs/cgroup/memory/memory.limit_in_bytes "9223372036854771712\n"
expect "version 1 is read" leaves 12

# script.sh COMMAND ...: a script that runs it, and says how that was.
cat >"$scratch/script.sh" <<SCRIPT
source "$root/launch/common.sh"
status=0
passing_signals_on "\$to_a_run" "\$@" || status=\$?
echo "returned \$status, told '\$told'"
SCRIPT

# A program that ends with 10 when it is told AS, and is there to be told when it says so.
# shellcheck disable=SC2016  # of the program
program='trap "exit 10" "$1"; trap "exit 11" "${2:-USR1}"; touch "$3"; while true; do sleep 0.05; done'
# told AS SIGNAL: whether a script that is told SIGNAL has its program told AS, and waits for its end.
told() {
  local script
  rm -f -- "$scratch/ready"
  # A shell ignores SIGINT for what it starts in the background, and what is ignored at first cannot be told.
  env --default-signal=HUP,INT bash "$scratch/script.sh" bash -c "$program" program "$1" USR1 "$scratch/ready" \
    >"$scratch/said" &
  script=$!
  until [[ -e $scratch/ready ]] || ! kill -0 "$script" 2>/dev/null; do sleep 0.02; done
  kill -s "$2" "$script"
  wait "$script" || true
  grep -qx "returned 10, told '$2'" "$scratch/said" || { cat -- "$scratch/said" && false; }
}
expect "TERM goes to the command" told TERM TERM
expect "HUP goes to the command" told HUP HUP
expect "INT goes on as TERM" told TERM INT

# Under nohup neither the script nor its program hears of a hangup, which each would end with 11 at.
ignores_hangups() {
  local script
  rm -f -- "$scratch/ready"
  (trap '' HUP && exec bash "$scratch/script.sh" bash -c "$program" program TERM HUP "$scratch/ready") \
    >"$scratch/said" &
  script=$!
  until [[ -e $scratch/ready ]] || ! kill -0 "$script" 2>/dev/null; do sleep 0.02; done
  kill -s HUP "$script"
  kill -s TERM "$script"
  wait "$script" || true
  grep -qx "returned 10, told 'TERM'" "$scratch/said" || { cat -- "$scratch/said" && false; }
}
expect "a hangup that is ignored at first stays so" ignores_hangups

# Told at any moment. The script's own traps tell where it stands: $TOLD_AT counts its commands since it began to
# start the program, before one of which it sends itself $TOLD.
cat >"$scratch/tell.sh" <<'TELL'
set -o functrace
commands=0
tell() {
  [[ $BASH_SUBSHELL == 0 && " ${FUNCNAME[*]} " == *" passing_signals_on "* ]] || return 0
  commands=$((commands + 1))
  ((commands == TOLD_AT)) || return 0
  # Before its traps, when it has started nothing, it may just end.
  local when=before
  [[ -z $(trap -p "$TOLD") && -z ${!-} ]] || when=since
  [[ $when == before || -n ${!-} ]] || when=early
  echo "$when $BASH_COMMAND" >"$TELLS"
  kill -s "$TOLD" $$
}
trap tell DEBUG
TELL
# told_at_any_time SIGNAL AS SCRIPT ARGUMENT...: whether such a script, told SIGNAL before any of its commands,
# ends as grep's AS says of what it says and of its status, or before it has begun.
told_at_any_time() {
  local signal=$1 as=$2 at script status when=before command=
  local early=0
  shift 2
  for ((at = 1; at < 300; at++)); do
    status=0
    # A limit for what is told and does not end. It makes a group of processes.
    BASH_ENV=$scratch/tell.sh TELLS=$scratch/tells TOLD=$signal TOLD_AT=$at \
      env --default-signal=HUP,INT timeout 600 bash "$@" >"$scratch/said" 2>&1 &
    script=$!
    { wait "$script" || status=$?; } 2>/dev/null  # where bash tells of a signal
    kill -KILL -- "-$script" 2>/dev/null || true  # what it has left behind
    echo "status $status" >>"$scratch/said"
    read -r when command <"$scratch/tells"
    if ! grep -qxE -- "$as" "$scratch/said" && [[ $when != before ]]; then
      echo "told $signal before '$command'" && cat -- "$scratch/said"
      return 1
    fi
    [[ $when != early ]] || early=$((early + 1))
    [[ $command != "wait "* ]] || break  # from here on it does nothing
  done
  ((early > 0 && at > early))
}
expect "TERM is passed on at any time" told_at_any_time TERM "returned 143, told 'TERM'" \
  "$scratch/script.sh" sleep infinity
expect "HUP too" told_at_any_time HUP "returned 129, told 'HUP'" "$scratch/script.sh" sleep infinity
expect "and INT" told_at_any_time INT "returned 143, told 'INT'" "$scratch/script.sh" sleep infinity

# launch/mpirun.sh, whose mpirun does not pass anything on yet.
mkdir -p -- "$scratch/tree/launch" "$scratch/bin"
cp -- "$root"/launch/{common,mpirun}.sh "$scratch/tree/launch"
echo true >"$scratch/tree/launch/build.sh"
printf '#!/bin/sh\nexec sleep infinity\n' >"$scratch/bin/mpirun"
printf '#!/bin/sh\nexit 1\n' >"$scratch/bin/nvidia-smi"
chmod +x -- "$scratch/bin/"*
PATH=$scratch/bin:$PATH expect "so are they by a job of ranks" told_at_any_time HUP "status 10" \
  "$scratch/tree/launch/mpirun.sh" 2 config.yaml

says_and_hears() {
  [[ $(echo heard | passing_signals_on "$to_a_run" bash -c 'cat && echo said >&2' 2>&1) == $'heard\nsaid' ]]
}
expect "a command has this script's input and output" says_and_hears
expect "its status is returned" passing_signals_on "$to_a_run" true
! passing_signals_on "$to_a_run" false || expect "and its failure" false
((num_failed == 0))
