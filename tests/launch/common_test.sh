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

# told SIGNAL: the status of a script whose command is told by it, and waited for.
told() {
  local script status=0
  cat >"$scratch/told.sh" <<SCRIPT
source "$root/launch/common.sh"
passing_signals_on bash -c 'trap "sleep 0.2; exit 10" $1; touch "$scratch/ready"; while true; do sleep 0.05; done'
SCRIPT
  rm -f -- "$scratch/ready"
  env --default-signal=INT bash "$scratch/told.sh" &
  script=$!
  until [[ -e $scratch/ready ]]; do sleep 0.02; done
  kill -s "$2" "$script"
  wait "$script" || status=$?
  [[ $status == 10 ]]
}
expect "TERM goes to the command" told TERM TERM
expect "HUP goes to the command" told HUP HUP
expect "INT goes on as TERM" told TERM INT
expect "a command's status is returned" passing_signals_on true
! passing_signals_on false || expect "and its failure" false
((num_failed == 0))
