#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/run.sh [PRESET]: builds and runs every test that this machine can run, then the unit tests
# under AddressSanitizer and UndefinedBehaviorSanitizer, with the GPU's kernels on the processor (the
# simt preset). What the second shows as well alone as after the first, the label `host`, is left to it.
# Without a preset: cuda where nvcc is, else cpu. The last line is `N passed, N failed, N skipped`,
# however it ends; the status is zero when none failed.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch/common.sh"

summarized=
# shellcheck disable=SC2317  # the trap calls it
end() {
  local status=$?
  [[ -n $summarized ]] || echo "0 passed, 1 failed, 0 skipped"
  exit "$((status == 0 ? 1 : status))"
}
trap end EXIT
for signal in HUP INT TERM; do
  # shellcheck disable=SC2064  # this signal
  trap "note 'error: stopped by SIG$signal (not all tests have run); start it again'; exit 1" "$signal"
done

(($# <= 1)) || fail "tests/run.sh is given '$*' (it takes one preset); leave the others out"
preset=${1:-$(default_preset)}
case $preset in
  cpu | cpu-asan | simt | cuda) ;;
  *) fail "there is no preset $preset (they are in CMakePresets.json); use cpu, cpu-asan, simt or cuda" ;;
esac
presets=("$preset")
[[ $preset == simt || $preset == cpu-asan ]] || presets+=(simt)

# What this will do to the machine, before it does.
announce() {
  local missing
  note "tests/run.sh builds the presets ${presets[*]} in $root/build and runs their tests: 20 to 40 minutes" \
    "on two cores from an empty build folder, of which the compiler takes the most; 3 GiB of disk there," \
    "and 4 GiB of memory."
  missing=$(bash "$root/launch/packages.sh" --tests --list) || exit
  if [[ -z $missing ]]; then
    note "It installs nothing."
    return
  fi
  note "It first installs, $([[ $(id -u) == 0 ]] && echo "as root" || echo "through sudo"): $missing."
  [[ $missing != *slurm* ]] ||
    note "(Slurm and munge are for one test, which starts daemons of its own and ends them. Nothing of them" \
      "starts with the machine unless you have it do so.)"
}
announce
mkdir -p -- "$root/build"
[[ -e $root/build/$preset/memphis ]] || require_disk "$root/build" 3000 "the tests"
bash "$root/launch/packages.sh" --tests

# One more than there are cores: many wait for ranks and processes that they have started.
cores=$(nproc)
jobs=$(((cores < 4 ? cores : 4) + 1))
results=()

# run_preset PRESET TARGET [ctest option ...]: TARGET is what builds the tests that are to run.
run_preset() {
  local preset=$1 build=$root/build/$1 target=$2 result
  shift 2
  result=$build/test-results
  results+=("$result")
  rm -rf -- "$result"
  mkdir -p -- "$result"
  if ! bash "$root/launch/build.sh" "$preset" --tests="$target"; then
    echo "the $preset preset does not build" >"$result/not_built"
    return
  fi
  # Of the simulated GPU's threads those that wait sleep, as programs of several tests share the cores.
  local environment=("GTEST_OUTPUT=xml:$result/gtest/" UBSAN_OPTIONS=print_stacktrace=1)
  [[ $preset != simt ]] || environment+=("OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}")
  # The status is read from the results, which name each case.
  env "${environment[@]}" \
    ctest --test-dir "$build" --parallel "$jobs" --output-on-failure \
    --output-junit "$result/ctest.xml" "$@" || true
}

if ((${#presets[@]} > 1)); then
  run_preset "$preset" tests_but_host -LE host
  # -LE: a test may carry both labels.
  run_preset simt sanitized_tests -L unit -LE slow
else
  run_preset "$preset" all
fi
status=0
python3 "$root/tests/support/summarize.py" "${results[@]}" || status=$?
summarized=1
trap - EXIT
exit "$status"
