#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# launch/mpirun.sh RANKS CONFIG [section.key=value ...]: trains as a job of RANKS processes on this
# machine, which share its cores out. Paths count from where you stand. On several machines call mpirun yourself: the program asks for
# nothing but Open MPI's or PMIx's environment. Exits with the program's code, and with 11 where a
# rank was killed by a signal, of which mpirun makes another code. A signal that tells this script to
# end has the ranks save and end with code 10; Ctrl-C reaches mpirun too, which gives them a second.
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
# A rank takes its share of the cores, which a binding to one of them would keep it from.
options=(--bind-to none -n "$ranks")
((ranks <= $(nproc))) || options+=(--oversubscribe)
[[ $(id -u) != 0 ]] || options+=(--allow-run-as-root)

# mpirun gives ranks a second after SIGTERM, kills them, and ends with 1 whatever they said; SIGUSR1
# it passes on.
told=0
# shellcheck disable=SC2317  # the traps call it
pass_on() {
  told=$1
  kill -USR1 "$job" 2>/dev/null || true
}
mpirun "${options[@]}" "$root/build/$preset/memphis" train "$config" "$@" </dev/null &
job=$!
trap 'pass_on 129' HUP
trap 'pass_on 130' INT
trap 'pass_on 143' TERM
trap 'kill -USR1 "$job" 2>/dev/null || true' USR1 USR2
while kill -0 "$job" 2>/dev/null; do
  wait "$job" || true  # a signal to this script interrupts it
done
status=0
wait "$job" || status=$?
case $status in
  1)
    # It was told as well, as the whole group is by Ctrl-C.
    ((told == 0)) || status=$told
    ;;
  12[89] | 1[3-9]? | 2??)
    note "mpirun ends with $status: a rank was killed by signal $((status - 128))"
    status=11
    ;;
esac
exit "$status"
