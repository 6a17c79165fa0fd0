#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# launch/mpirun.sh RANKS CONFIG [section.key=value ...]: trains as a job of RANKS processes on this
# machine, which share its cores out. Paths count from where you stand. On several machines call mpirun yourself: the program asks for
# nothing but Open MPI's or PMIx's environment. Exits with the program's code, and with 11 where a
# rank was killed by a signal, of which mpirun makes another code. A signal that tells this script to
# end, early as it may come, has the ranks save and end with code 10; Ctrl-C reaches mpirun too, which
# gives them a second.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] ||
  fail "launch/mpirun.sh is given '${*:-nothing}' (it takes a number of ranks and a config);" \
    "use it as in \`launch/mpirun.sh 4 configs/smoke_cpu.yaml parallel.tensor=2\`"
ranks=$1
config=$(config_path "$2")
shift 2

preset=$(preset_to_run)
bash "$root/launch/build.sh" "$preset"
# A rank takes its share of the cores, which a binding to one of them would keep it from. mpirun has a slot for
# each core, and none for a second thread of one: it is told that there may be more ranks than slots.
options=(--bind-to none --oversubscribe -n "$ranks")
[[ $(id -u) != 0 ]] || options+=(--allow-run-as-root)

# mpirun gives ranks a second after SIGTERM, kills them, and ends with 1 whatever they said; SIGUSR1
# it passes on.
status=0
passing_signals_on "HUP=USR1 INT=USR1 TERM=USR1 USR1=USR1 USR2=USR1" \
  mpirun "${options[@]}" "$root/build/$preset/memphis" train "$config" "$@" </dev/null || status=$?
case $told/$status in
  # It was told as well, as the whole group is by Ctrl-C.
  HUP/1 | INT/1 | TERM/1) status=$((128 + $(kill -l "$told"))) ;;
  # SIGUSR1 ends an mpirun that does not pass it on yet, and a rank that does not heed it yet: none has begun.
  ?*/$((128 + $(kill -l USR1)))) status=10 ;;
  */12[89] | */1[3-9]? | */2??)
    note "mpirun ends with $status: a rank was killed by signal $((status - 128))"
    status=11
    ;;
esac
exit "$status"
