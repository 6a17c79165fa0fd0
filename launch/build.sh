#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# launch/build.sh [PRESET] [--tests[=TARGET]] [--march ARCH] [-DNAME=VALUE ...]: builds
# build/PRESET/memphis, and with --tests everything, or those tests that TARGET stands for. A folder that
# was once built with tests keeps them configured. Without a preset: cuda where nvcc is, else cpu. The
# cuda preset compiles for the GPU of this machine, or for sm_90a where there is none, unless
# -DCMAKE_CUDA_ARCHITECTURES names another. All of them compile for this machine's processor, unless
# --march names another: x86-64-v3 is for any since 2013, x86-64-v4 for those with AVX-512. It is
# remembered until --march native.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

preset=
target=memphis
tests=
definitions=()
while (($# > 0)); do
  argument=$1
  shift
  case $argument in
    --tests) target=all tests=asked ;;
    --tests=?*) target=${argument#--tests=} tests=asked ;;
    --march)
      (($# > 0)) ||
        fail "--march names no architecture (it takes one of g++'s -march);" \
          "use native, x86-64-v2, x86-64-v3 or x86-64-v4"
      definitions+=("-DMEMPHIS_CPU_ARCH=$1")
      shift
      ;;
    --march=?*) definitions+=("-DMEMPHIS_CPU_ARCH=${argument#--march=}") ;;
    -D?*) definitions+=("$argument") ;;
    cpu | cpu-asan | simt | cuda)
      [[ -z $preset ]] || fail "two presets are given, $preset and $argument (a build has one); give one"
      preset=$argument
      ;;
    *) fail "there is no preset $argument (they are in CMakePresets.json); use cpu, cpu-asan, simt or cuda" ;;
  esac
done
preset=${preset:-$(default_preset)}

if [[ -n $tests || $preset == simt ]]; then
  bash "$root/launch/packages.sh" --tests
else
  bash "$root/launch/packages.sh"
fi
if [[ $preset == cuda ]]; then
  nvcc=$(nvcc_version)
  [[ -n $nvcc ]] ||
    fail "no nvcc on PATH or in /usr/local/cuda/bin (the cuda preset compiles with it);" \
      "install the CUDA toolkit 12.8 or newer, or use \`launch/build.sh cpu\`"
  version_at_least "$nvcc" 12.8 ||
    fail "nvcc is $nvcc (the cuda preset needs 12.8 or newer);" \
      "install a newer CUDA toolkit, or use \`launch/build.sh cpu\`"
fi

build=$root/build/$preset
cache=$build/CMakeCache.txt
mkdir -p -- "$build"
[[ -e $build/memphis ]] || require_disk "$build" 2000 "a build"

# A build folder that came along when the tree was copied still names the old tree.
fresh=()
home=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$cache" 2>/dev/null || true)
if [[ -n $home && $home != "$root" ]]; then
  fresh=(--fresh)
fi
# What trains needs neither the tests nor what they need, but building it must not take them away from
# one who has built them here.
testing=OFF
if [[ -n $tests ]] ||
  { [[ ${#fresh[@]} == 0 ]] && grep -qx 'BUILD_TESTING:BOOL=ON' "$cache" 2>/dev/null; }; then
  testing=ON
fi
definitions=("-DBUILD_TESTING=$testing" "${definitions[@]}")
architecture=$(gpu_architecture)
if [[ $preset == cuda && -n $architecture && ${definitions[*]} != *CMAKE_CUDA_ARCHITECTURES* ]]; then
  definitions+=("-DCMAKE_CUDA_ARCHITECTURES=$architecture")
fi
if command -v ccache >/dev/null; then
  # It keeps nothing of a source with a precompiled header unless told that such a header, which is
  # part of what it compares, stands for the macros too.
  definitions+=("-DCMAKE_CXX_COMPILER_LAUNCHER=env;CCACHE_SLOPPINESS=pch_defines,time_macros;ccache")
  [[ $preset != cuda ]] || definitions+=(-DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
fi
# CMake does not watch the presets file. Definitions are remembered, so that asking again for the same
# build configures nothing.
stamp=$build/configured
if [[ ${#fresh[@]} -gt 0 || ! -e $build/build.ninja || $root/CMakePresets.json -nt $stamp ||
  $(cat -- "$stamp" 2>/dev/null || true) != "${definitions[*]}" ]]; then
  (cd -- "$root" && cmake --preset "$preset" "${fresh[@]}" "${definitions[@]}")
  printf '%s\n' "${definitions[*]}" >"$stamp"
fi

# nvcc takes up to 2 GiB a source, and g++ up to 1.2 with the sanitizers: more jobs than fit in memory end in
# a killed compiler. A container's limit counts where it is below the machine's.
memory_mib=$(awk '/^MemAvailable:/ {print int($2 / 1024)}' /proc/meminfo)
limit=$(control_group_free_mib "")
if [[ -n $limit ]] && ((limit < memory_mib)); then
  memory_mib=$limit
fi
mib_per_job=1280
[[ $preset != cuda ]] || mib_per_job=2048
jobs=$((memory_mib / mib_per_job))
cores=$(nproc)
jobs=$((jobs < 1 ? 1 : jobs > cores ? cores : jobs))

cmake --build "$build" --target "$target" --parallel "$jobs"
