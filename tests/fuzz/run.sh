#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/fuzz/run.sh [--seconds N | --runs N | --gate] [--build FOLDER] [TARGET ...]: feeds the readers of
# files with what libFuzzer makes of the seeds, under the address and the undefined behaviour sanitizers of
# clang 14, which launch/packages.sh --tests installs (clang-14, libclang-rt-14-dev); a target is a file
# FUZZ_*.cpp of this folder, and two are fed at a time. What it finds is kept in FOLDER/found; an input that
# showed a fault belongs into seeds/TARGET, which ctest replays. By default 60 seconds a target. --gate gives
# each a number of inputs, from the seeds alone, so that the same are tried wherever it runs. Exits with 1
# where something was found, with 77 without the compiler.
set -euo pipefail
export LC_ALL=C  # the order of names
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
limit=-max_total_time=60
patience=20  # seconds of a clock for one input
build=$root/build/fuzz
targets=()
while (($# > 0)); do
  case $1 in
    --seconds) limit=-max_total_time=$2 && shift 2 ;;
    --runs) limit=-runs=$2 && shift 2 ;;
    --gate) limit= patience=300 && shift ;;
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
# Without what AddressSanitizer stops too, a null pointer or one behind its object, with which code compiles half as
# long again. The flags are words of a file, each in quotes, for folders may have blanks in their names.
flags=(-std=c++20 -O1 -g1 -fopenmp=libgomp -fsanitize=fuzzer-no-link,address,undefined
  -fno-sanitize=vptr,null,object-size -fno-sanitize-recover=undefined -fno-omit-frame-pointer
  -D_GLIBCXX_ASSERTIONS -DSPDLOG_COMPILED_LIB -DSPDLOG_FMT_EXTERNAL -DSPDLOG_SHARED_LIB -DFMT_SHARED
  "-I$root" "-I$build/include")
packages=(yaml-cpp spdlog fmt libxxhash sentencepiece libpcre2-8 libutf8proc zlib libzstd)
read -ra of_packages <<<"$(pkg-config --cflags "${packages[@]}" 2>/dev/null || true)"
printf '"%s"\n' "${flags[@]}" ${of_packages[@]+"${of_packages[@]}"} >"$build/flags"
libraries="$(pkg-config --libs "${packages[@]}") -lgomp -ldl"
compiler=clang++-14
if command -v ccache >/dev/null; then
  compiler="ccache $compiler"
  export CCACHE_SLOPPINESS=pch_defines,time_macros
fi

# What is read by a target, and what that stands on.
sources=("$root"/csrc/core/*.cpp "$root"/csrc/config/*.cpp "$root"/csrc/data/*.cpp)
for name in checksum json manifest npy safetensors safetensors_writer; do
  sources+=("$root/csrc/checkpoint/$name.cpp")
done
# Those of a folder seven at a time, as the product's are, but core's one by one.
count=0
last=
objects=()
rm -rf -- "$build/together"
mkdir -p -- "$build/together"
for source in "${sources[@]}"; do
  case $source in
    */device_cuda.cpp | */device_simt.cpp | */profiler_range_cuda.cpp | */processor.cpp | */instruction_set.cpp) continue ;;
  esac
  folder=$(basename -- "$(dirname -- "$source")")
  name=$(basename -- "$source" .cpp)
  [[ $folder == "$last" ]] || count=0
  last=$folder
  [[ $folder == core ]] || name=$((count++ / 7))
  printf '#include "%s"\n' "$source" >>"$build/together/$folder-$name.cpp"
done
for source in "$build/together"/*.cpp; do
  objects+=("$build/objects/$(basename -- "$source" .cpp).o")
  printf '%s\0%s\0' "$source" "${objects[-1]}"
done >"$build/list"
# What several of them include of the libraries is parsed once.
grep -ho '^#include <[a-z_/]*\(\.h\)\?>' "${sources[@]}" | sort | uniq -c | awk '$1 > 4 {print $2, $3}' >"$build/include/common.h"
# Without the time of day, which would be a part of all that ccache keeps.
clang++-14 "@$build/flags" -Xclang -fno-pch-timestamp -x c++-header "$build/include/common.h" -o "$build/include/common.pch"
printf '"%s"\n' -include-pch "$build/include/common.pch" >>"$build/flags"
export here build libraries compiler
# shellcheck disable=SC2016 # $1 and $2 are of the shell that xargs starts, and the compiler is words
xargs -0 -n 2 -P 2 bash -c '$compiler "@$build/flags" -c "$1" -o "$2"' bash <"$build/list"

# So many inputs, about six seconds of a core each.
gate_runs() {
  case $1 in
    corpus) echo 2000 ;;
    config) echo 15000 ;;
    manifest) echo 100000 ;;
    npy) echo 150000 ;;
    safetensors) echo 80000 ;;
    tokenizer) echo 10000 ;;
    tokens) echo 40000 ;;
    *) echo 10000 ;;
  esac
}

feed() {
  local target=$1 corpus=$build/corpus/$1 runs=$limit
  local seeds=("$here/seeds/$target")
  [[ $target != config ]] || seeds+=("$root/configs")
  if [[ -z $runs ]]; then
    runs=-runs=$(gate_runs "$target")
    corpus=$build/gate/$target
    rm -rf -- "$corpus"
  fi
  mkdir -p -- "$corpus" "$build/found/$target"
  # Sanitizers hold memory against a reader that believes a file's word for a size; the window of a zstd frame
  # is one of up to 2 GiB, of which no more is touched than the frame holds.
  local largest=512
  [[ $target != corpus ]] || largest=2100
  local status=0
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=0 "$build/fuzz_$target" "$runs" -timeout="$patience" \
    -rss_limit_mb=2048 -malloc_limit_mb="$largest" -max_len=65536 -print_final_stats=1 -verbosity=0 -seed=1 \
    -artifact_prefix="$build/found/$target/" "$corpus" "${seeds[@]}" >"$build/$target.log" 2>&1 || status=1
  echo "== $target"
  grep -E "stat::number_of_executed_units|ERROR|runtime error|SUMMARY|Test unit written" "$build/$target.log" || true
  return $status
}

printf '"%s"\n' "${objects[@]}" >"$build/linked"
# shellcheck disable=SC2016 # as above
printf '%s\0' "${targets[@]}" | xargs -0 -n 1 -P 2 bash -c 'set -e
  $compiler "@$build/flags" -c "$here/fuzz_$1.cpp" -o "$build/objects/fuzz_$1.o"
  clang++-14 -fsanitize=fuzzer,address,undefined -fno-sanitize=vptr "$build/objects/fuzz_$1.o" \
    "@$build/linked" -o "$build/fuzz_$1" $libraries' bash
status=0
pids=()
for target in "${targets[@]}"; do
  if ((${#pids[@]} == 2)); then
    wait "${pids[0]}" || status=1
    pids=("${pids[1]}")
  fi
  feed "$target" &
  pids+=($!)
done
for pid in "${pids[@]}"; do
  wait "$pid" || status=1
done
exit $status
