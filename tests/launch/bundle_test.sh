#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# bundle_test.sh PRESET: the bundle of build/PRESET, moved, trains with two ranks in an empty environment,
# and no library is loaded but its own, glibc's and those of the system's commands. That of the simt
# preset also rehearses tests/gpu.sh.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../launch/common.sh"
# shellcheck source=tests/launch/expect.sh
source "$root/tests/launch/expect.sh"
# shellcheck source=tests/launch/mpirun_starts.sh
source "$root/tests/launch/mpirun_starts.sh"

preset=$1
skip_unless_mpirun_starts mpirun
# Beside the builds, where there is room for a bundle: /tmp may be a small disk in memory.
scratch=$(realpath -- "$(mktemp -d "$root/build/bundle_test.XXXXXX")")
trap 'rm -rf -- "$scratch"' EXIT
mkdir -- "$scratch/elsewhere"
if [[ $preset == simt ]]; then
  # Which the sanitizers make too large for an archive that is to travel.
  bash "$root/launch/bundle.sh" simt --built --tests --no-archive --to "$scratch/made"
  mv -- "$scratch/made/memphis-simt" "$scratch/elsewhere"
else
  bash "$root/launch/bundle.sh" "$preset" --built --to "$scratch/made"
  python3 -m tarfile -e "$scratch/made/memphis-$preset.tar.xz" "$scratch/elsewhere"
fi
rm -rf -- "$scratch/made"
bundle=$scratch/elsewhere/memphis-$preset
bare=(env -i PATH=/usr/bin:/bin HOME="$scratch" OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0)

expect "it knows its version" "${bare[@]}" "$bundle/memphis" --version
cat >"$scratch/tiny.yaml" <<YAML
model: {vocab_size: 259, num_layers: 1, d_model: 16, num_heads: 2, ffn_dim: 16, num_experts: 2}
run: {dir: "$scratch/run", device: cpu}
data: {train: ["$bundle/README.md"]}
batch: {sequence_length: 16, micro_batch: 1, global_batch: 2}
schedule: {steps: 2, warmup_steps: 1}
metrics: {every: 1, validate_every: 0, sample_every: 0}
YAML
mkdir -- "$scratch/loaded"
trains() {
  "${bare[@]}" "$bundle/run" env LD_DEBUG=files LD_DEBUG_OUTPUT="$scratch/loaded/of" \
    mpirun --allow-run-as-root --bind-to none --oversubscribe -n 2 memphis train "$scratch/tiny.yaml" \
    >"$scratch/log" 2>&1 || { tail -n 30 -- "$scratch/log" && false; }
}
expect "it trains with two ranks" trains
expect "and saves" test -e "$scratch/run/step-00000002/COMMIT"

# loads FILE FOLDER NAME: whether a process has loaded something of that name from there, by what it said in FILE.
# The folder is no pattern: this tree lies where it does.
loads() {
  local library
  while read -r library; do
    [[ $library != "$2"*"$3"* ]] || return 0
  done < <(sed -n 's/.*calling init: //p' "$1")
  return 1
}
# Of the processes that loaded the program or Open MPI, what came from elsewhere: not of the system's own tools,
# whose libselinux takes the bundle's libpcre2. They began as bash, which has libtinfo; PMIx looks into its own folder where the machine has one; CUDA's libraries are the machine's.
foreign() {
  local file
  for file in "$scratch/loaded/"*; do
    ! loads "$file" "$bundle/" '/libopen-pal' || sed -n 's/.*calling init: //p' "$file"
  done | sort -u | bundle=$bundle/ awk 'index($0, ENVIRON["bundle"]) != 1' |
    grep -vE "/(ld-linux-x86-64|lib(c|m|dl|pthread|rt|util|resolv|mvec|tinfo))\.so\.|/pmix2?/|/lib(cudart|cublas|cublasLt|nccl)\.so\." || true
}
is_alone() {
  local found
  found=$(foreign)
  [[ -z $found ]] || { echo "$found" && false; }
}
expect "no library of the distribution is loaded" is_alone
loads_open_mpi() {
  local file
  for file in "$scratch/loaded/"*; do
    ! loads "$file" "$bundle/runtime/lib/openmpi/" mca_ || return 0
  done
  return 1
}
expect "Open MPI's parts are the bundle's" loads_open_mpi

if [[ $preset == simt ]]; then
  rehearses() {
    local last
    "${bare[@]}" bash "$bundle/tests/gpu.sh" --rehearse --results "$scratch/results" >"$scratch/rehearsal" || {
      cat -- "$scratch/rehearsal" && return 1
    }
    last=$(tail -n 1 -- "$scratch/rehearsal")
    [[ $last == *" 0 failed, "*" 0 left" ]]
  }
  expect "it rehearses what a GPU is to show" rehearses
  for stage in instructions ops training sanitize kernels smoke steps ranks peers; do
    expect "$stage too" grep -qE "^$stage +[^ ]+ +passed" "$scratch/results/summary.txt"
  done
fi
((num_failed == 0))
