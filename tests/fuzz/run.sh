#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/fuzz/run.sh [--seconds N | --runs N] [--build FOLDER] [TARGET ...]: feeds the readers of files with
# what libFuzzer makes of the seeds, under the address and the undefined behaviour sanitizers of clang 14
# (packages clang-14, libclang-rt-14-dev); a target is a file FUZZ_*.cpp of this folder. What it finds is
# kept in FOLDER/found; an input that showed a fault belongs into seeds/TARGET, which ctest replays.
# By default 60 seconds a target. Exits with 1 where something was found, with 77 without the compiler.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
limit=-max_total_time=60
build=$root/build/fuzz
targets=()
while (($# > 0)); do
  case $1 in
    --seconds) limit=-max_total_time=$2 && shift 2 ;;
    --runs) limit=-runs=$2 && shift 2 ;;
    --build) build=$2 && shift 2 ;;
    *) targets+=("$1") && shift ;;
  esac
done
if ((${#targets[@]} == 0)); then
  for source in "$here"/fuzz_*.cpp; do
    name=$(basename -- "$source" .cpp)
    targets+=("${name#fuzz_}")
  done
fi
if ! command -v clang++-14 >/dev/null ||
  [[ ! -e $(clang++-14 -print-file-name=libclang_rt.fuzzer-x86_64.a) &&
    ! -e $(clang++-14 -print-resource-dir)/lib/linux/libclang_rt.fuzzer-x86_64.a ]]; then
  echo "SKIP: no clang++-14 with libFuzzer; install clang-14 and libclang-rt-14-dev"
  exit 77
fi

mkdir -p -- "$build/include" "$build/objects" "$build/found"
# The header of g++'s OpenMP alone, for its other headers are not for clang, nor is an attribute of this one.
rm -f -- "$build/include/omp.h"
sed 's/__malloc__ ([a-z_]*)/__malloc__/' "$(g++ -print-file-name=include/omp.h)" >"$build/include/omp.h"
flags="-std=c++20 -O1 -g1 -fopenmp=libgomp -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize=vptr
  -fno-sanitize-recover=undefined -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS -DSPDLOG_COMPILED_LIB
  -DSPDLOG_FMT_EXTERNAL -DSPDLOG_SHARED_LIB -DFMT_SHARED -I$root -I$build/include"
packages="yaml-cpp spdlog fmt libxxhash sentencepiece libpcre2-8 zlib libzstd"
flags+=" $(pkg-config --cflags $packages 2>/dev/null || true)"
libraries="$(pkg-config --libs $packages) -lgomp -ldl"
compiler=clang++-14
! command -v ccache >/dev/null || compiler="ccache $compiler"

# What is read by a target, and what that stands on.
sources=("$root"/csrc/core/*.cpp "$root"/csrc/config/*.cpp "$root"/csrc/data/*.cpp)
for name in checksum json manifest npy safetensors safetensors_writer; do
  sources+=("$root/csrc/checkpoint/$name.cpp")
done
objects=()
for source in "${sources[@]}"; do
  case $source in
    */device_cuda.cpp | */device_simt.cpp | */profiler_range_cuda.cpp | */processor.cpp) continue ;;
  esac
  objects+=("$build/objects/$(basename -- "$(dirname -- "$source")")-$(basename -- "$source" .cpp).o")
  printf '%s\0%s\0' "$source" "${objects[-1]}"
done >"$build/list"
export flags compiler
# shellcheck disable=SC2016 # $1 and $2 are of the shell that xargs starts, and flags are words
xargs -0 -n 2 -P "$(nproc)" bash -c '$compiler $flags -c "$1" -o "$2"' bash <"$build/list"

status=0
for target in "${targets[@]}"; do
  $compiler $flags -c "$here/fuzz_$target.cpp" -o "$build/objects/fuzz_$target.o"
  # shellcheck disable=SC2086
  clang++-14 -fsanitize=fuzzer,address,undefined -fno-sanitize=vptr "$build/objects/fuzz_$target.o" \
    "${objects[@]}" -o "$build/fuzz_$target" $libraries
  mkdir -p -- "$build/corpus/$target" "$build/found/$target"
  seeds=("$here/seeds/$target")
  [[ $target != config ]] || seeds+=("$root/configs")
  echo "== $target"
  # Sanitizers hold memory against a reader that believes a file's word for a size.
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=0 "$build/fuzz_$target" "$limit" -timeout=20 -rss_limit_mb=2048 \
    -malloc_limit_mb=512 -max_len=65536 -print_final_stats=1 -verbosity=0 -seed=1 \
    -artifact_prefix="$build/found/$target/" "$build/corpus/$target" "${seeds[@]}" \
    >"$build/$target.log" 2>&1 || status=1
  grep -E "stat::number_of_executed_units|ERROR|runtime error|SUMMARY|Test unit written" "$build/$target.log" || true
done
exit $status
