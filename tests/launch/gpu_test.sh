#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# gpu_test.sh: what tests/gpu.sh makes of items that pass, fail, pass over all and do not end, and how it
# goes on. The items are scripts that stand for tests.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../launch/common.sh"
# shellcheck source=tests/launch/expect.sh
source "$root/tests/launch/expect.sh"

scratch=$(mktemp -d)/a\ place  # whose name has a space
trap 'rm -rf -- "${scratch%/*}"' EXIT
build=$scratch/build
mkdir -p -- "$build/tests"
printf 'instructions warp_test\nops good_test bad_test absent_test silent_test\n' >"$build/tests/stages.txt"

# stands_for TEST LINE...: what the test does; it counts its runs.
stands_for() {
  { echo '#!/bin/bash' && echo "echo \"\$*\" >>'$scratch/$1.runs'" && printf '%s\n' "${@:2}"; } >"$build/tests/$1"
  chmod +x -- "$build/tests/$1"
}
says() {
  echo "echo '[==========] $1 tests ran.'; echo '[  PASSED  ] $2 tests.'; echo '[  SKIPPED ] $3 tests, listed below:'"
}
stands_for good_test "$(says 4 3 1)"
stands_for bad_test "$(says 4 3 1)" 'exit 1'
stands_for absent_test "$(says 2 0 2)"
stands_for silent_test
stands_for warp_test 'sleep 1000'

gpu() {
  status=0
  bash "$root/tests/gpu.sh" --rehearse --build "$build" --results "$scratch/results" "$@" \
    >"$scratch/out" 2>"$scratch/err" || status=$?
}
ends() {
  [[ $status == "$1" && $(tail -n 1 "$scratch/out") == "$2" ]] || { cat -- "$scratch/out" "$scratch/err" && false; }
}
verdict() {
  [[ $(cat -- "$scratch/results/$1.verdict" 2>/dev/null) == "$2" ]]
}
runs() {
  (($(wc -l <"$scratch/$1.runs") == $2))
}

# cut STAGE: a call that ends while an item is at work that never would. That it is at work when the call's end
# comes is for the machine to say: a call that got nowhere by then is made again, and has twice as long.
cut_at_work() {
  local item=$scratch/warp_test.runs seconds=12
  rm -f -- "$item"
  until [[ -e $item ]]; do
    ((seconds < 1000)) || { cat -- "$scratch/out" "$scratch/err" && return 1; }
    gpu --seconds "$seconds" "$@"
    seconds=$((2 * seconds))
  done
}

gpu ops
expect "failures end it with 1" ends 1 "1 passed, 3 failed, 0 skipped, 0 left"
expect "a test that passes has its cases counted" verdict ops/good_test "passed 3 cases, 1 skipped"
expect "a status is a failure" verdict ops/bad_test "failed with status 1"
expect "so are cases that all pass over" verdict ops/absent_test "failed as no case ran (2 were skipped)"
expect "and a test that says nothing" verdict ops/silent_test "failed as no case ran (0 were skipped)"
expect "a failure is shown with its end" grep -q '| \[  PASSED  \] 3 tests' "$scratch/err"
cut_at_work instructions
expect "also where what is left is not done" ends 1 "1 passed, 3 failed, 0 skipped, 1 left"

stands_for bad_test "$(says 4 4 0)"
stands_for absent_test "$(says 2 2 0)"
stands_for silent_test "$(says 1 1 0)"
rm -- "$scratch/results/ops/"{bad,absent,silent}_test.verdict
gpu ops
expect "what passes now is counted so" ends 0 "4 passed, 0 failed, 0 skipped, 0 left"
expect "what has a verdict is not run again" runs good_test 1
expect "the others are" runs bad_test 2
cut_at_work ops instructions
expect "what is left ends it with 10" ends 10 "4 passed, 0 failed, 0 skipped, 1 left"
expect "what is cut has no verdict" test ! -e "$scratch/results/instructions/warp_test.verdict"
expect "and is named" grep -q 'warp_test is cut' "$scratch/err"

# Its script is told by an item, whose parent's parent it is.
# shellcheck disable=SC2016  # the stand-in expands it
stands_for warp_test 'read -r _ _ _ script _ <"/proc/$PPID/stat"; kill -s TERM "$script"; sleep 1000'
gpu ops instructions
expect "a signal leaves what it cuts" ends 143 "4 passed, 0 failed, 0 skipped, 1 left"
expect "which has no verdict either" test ! -e "$scratch/results/instructions/warp_test.verdict"

stands_for warp_test "$(says 1 1 0)"
gpu ops instructions
expect "it goes on" ends 0 "5 passed, 0 failed, 0 skipped, 0 left"
expect "and has it in a table" grep -qE '^ops +silent_test +passed 1 cases' "$scratch/results/summary.txt"

echo "commit: another" >"$scratch/results/build.txt"
gpu ops
expect "results of another build are refused" grep -q 'results of another build' "$scratch/err"
gpu --seconds none
expect "and so are seconds that are no number" grep -q -- '--seconds is none' "$scratch/err"
gpu nothing
expect "and stages that there are not" grep -q 'there is no stage nothing' "$scratch/err"

# Its limits, as `timeout` is given them.
mkdir -- "$scratch/bin"
# shellcheck disable=SC2016  # the stub expands it
printf '#!/bin/bash\necho "$2" >>"%s"\nshift 2\nexec "$@"\n' "$scratch/limits" >"$scratch/bin/timeout"
chmod +x -- "$scratch/bin/timeout"
PATH=$scratch/bin:$PATH gpu --results "$scratch/limited" ops instructions
expect "a rehearsal has ten times as long" test "$(xargs <"$scratch/limits")" = "2400 2400 2400 2400 600"
rm -- "$scratch/bin/timeout"

# On a machine with a GPU, as far as this script can tell, the sanitizer watches the tests themselves.
printf '#!/bin/bash\necho "|   0  NVIDIA H100 80GB HBM3          On  |"\n' >"$scratch/bin/nvidia-smi"
# shellcheck disable=SC2016  # the stub expands it
printf '#!/bin/bash\necho "$2" >>"%s"\nwhile [[ $1 == --* ]]; do shift 2; done\nexec "$@"\n' \
  "$scratch/watched" >"$scratch/bin/compute-sanitizer"
chmod +x -- "$scratch/bin/"*
printf 'instructions warp_test\nops good_test\n' >"$build/tests/stages.txt"
status=0
PATH=$scratch/bin:$PATH bash "$root/tests/gpu.sh" --build "$build" --results "$scratch/on_a_gpu" \
  instructions ops sanitize >"$scratch/out" 2>"$scratch/err" || status=$?
expect "on a GPU they run as well" ends 0 "6 passed, 0 failed, 0 skipped, 0 left"
expect "with both tools, of which the first is tried before" \
  test "$(sort -- "$scratch/watched" | uniq -c | xargs)" = "3 memcheck 2 racecheck"
expect "and the machine is on record" grep -q 'H100' "$scratch/on_a_gpu/machine.txt"

# Another machine goes on with what the last one sent back.
rm -r -- "$scratch/on_a_gpu"
status=0
PATH=$scratch/bin:$PATH bash "$root/tests/gpu.sh" --build "$build" --results "$scratch/on_a_gpu" \
  instructions ops sanitize >"$scratch/out" 2>"$scratch/err" || status=$?
expect "results in one file are gone on from" ends 0 "6 passed, 0 failed, 0 skipped, 0 left"
# A machine that says so is passed over.
printf '#!/bin/bash\necho "Error: Device not supported"\nexit 1\n' >"$scratch/bin/compute-sanitizer"
status=0
PATH=$scratch/bin:$PATH bash "$root/tests/gpu.sh" --build "$build" --results "$scratch/unwatched" \
  instructions sanitize >"$scratch/out" 2>"$scratch/err" || status=$?
expect "where the sanitizer cannot watch that is said" ends 0 "1 passed, 0 failed, 1 skipped, 0 left"

((num_failed == 0))
