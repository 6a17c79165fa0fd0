#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/sanitize_gpu.sh [BUILD_DIR]: the GPU cases of every op's test under compute-sanitizer, once for
# memory errors and once for races in shared memory. Needs a GPU and the toolkit's compute-sanitizer;
# BUILD_DIR (build/cuda unless given) is what `launch/build.sh cuda --tests` made. The last line is
# `N clean, N with errors`.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
build=${1:-$root/build/cuda}

if ! command -v compute-sanitizer >/dev/null; then
  echo "compute-sanitizer is not on the PATH (it comes with the CUDA toolkit); add its bin folder" >&2
  exit 5
fi
if [[ ! -x $build/tests/rmsnorm_test ]]; then
  echo "$build holds no tests (they are not built by default); run launch/build.sh cuda --tests" >&2
  exit 5
fi

clean=0
failed=0
cd -- "$root"
for folder in kernels/*/; do
  test_binary=$build/tests/$(basename -- "$folder")_test
  [[ -x $test_binary ]] || continue
  for tool in memcheck racecheck; do
    # Instrumented code runs some hundred times slower: the large shapes stay out.
    if compute-sanitizer --tool "$tool" --error-exitcode 1 "$test_binary" \
      --gtest_filter='*cuda*-*large*:*grok*:*small_model*' --gtest_brief=1; then
      clean=$((clean + 1))
    else
      failed=$((failed + 1))
      echo "$tool finds errors in $(basename -- "$test_binary")"
    fi
  done
done
echo "$clean clean, $failed with errors"
((failed == 0))
