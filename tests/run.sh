#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/run.sh [PRESET]: builds and runs every test that this machine can run, then the unit tests
# under AddressSanitizer and UndefinedBehaviorSanitizer, with the GPU's kernels on the processor (the
# simt preset). Without a preset: cuda where nvcc is, else cpu. The last line is `N passed, N failed, N skipped`; the status is zero when none failed.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch/common.sh"

preset=${1:-$(default_preset)}
results=()

# run_preset PRESET [ctest option ...]
run_preset() {
  local preset=$1 build=$root/build/$1 result
  shift
  result=$build/test-results
  results+=("$result")
  rm -rf -- "$result"
  mkdir -p -- "$result"
  if ! bash "$root/launch/build.sh" "$preset" --tests; then
    echo "the $preset preset does not build" >"$result/not_built"
    return
  fi
  # One at a time: a test's OpenMP threads take every core, and two sets of them only wait for each
  # other. The status is read from the results, which name each case.
  GTEST_OUTPUT="xml:$result/gtest/" UBSAN_OPTIONS=print_stacktrace=1 \
    ctest --test-dir "$build" --output-on-failure --output-junit "$result/ctest.xml" "$@" || true
}

run_preset "$preset"
if [[ $preset != simt && $preset != cpu-asan ]]; then
  # -LE: a test may carry both labels.
  run_preset simt -L unit -LE slow
fi
exec python3 "$root/tests/support/summarize.py" "${results[@]}"
