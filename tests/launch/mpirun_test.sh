#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# mpirun_test.sh MEMPHIS: launch/mpirun.sh, whose exit code says how a job ended whatever mpirun makes
# of it, and which hands on a signal that would end it.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../launch/common.sh"
# shellcheck source=tests/launch/expect.sh
source "$root/tests/launch/expect.sh"
# shellcheck source=tests/launch/mpirun_starts.sh
source "$root/tests/launch/mpirun_starts.sh"

binary=$(realpath -- "$1")
skip_unless_mpirun_starts mpirun
scratch=$(realpath -- "$(mktemp -d)")/a\ place  # whose name has a space
mkdir -- "$scratch"
script=  # its process
tear_down() {
  [[ -z $script ]] || kill -KILL "$script" 2>/dev/null || true
  rm -rf -- "${scratch%/*}"
}
trap tear_down EXIT

# The scripts with that binary, which need not be built first.
make_tree() {
  mkdir -p -- "$scratch/launch" "$scratch/build/"{cpu,cuda}
  cp -- "$root/launch/mpirun.sh" "$root/launch/common.sh" "$scratch/launch"
  echo true >"$scratch/launch/build.sh"
  ln -s -- "$binary" "$scratch/build/cpu/memphis"
  ln -s -- "$binary" "$scratch/build/cuda/memphis"
  cat >"$scratch/tiny.yaml" <<YAML
model: {vocab_size: 259, num_layers: 1, d_model: 16, num_heads: 2, ffn_dim: 16, num_experts: 2}
run: {dir: $scratch/run, device: cpu}
data: {train: [$root/README.md]}
batch: {sequence_length: 16, micro_batch: 1, global_batch: 2}
schedule: {steps: 1000000, warmup_steps: 1}
metrics: {every: 100000, validate_every: 0, sample_every: 0}
YAML
}

# job NAME ARGUMENT...: starts one of two ranks that is NAME, and waits for its first step.
job() {
  local name=$1
  shift
  # A shell ignores SIGINT for what it starts in the background, and what is ignored at first cannot be told.
  env --default-signal=HUP,INT bash "$scratch/launch/mpirun.sh" 2 "$scratch/tiny.yaml" run.dir="$scratch/$name" "$@" \
    >"$scratch/$name.log" 2>&1 &
  script=$!
  until [[ -s $scratch/$name/metrics.jsonl ]] || ! kill -0 "$script" 2>/dev/null; do
    sleep 0.02
  done
}

# ends NAME CODE: whether it does.
ends() {
  local status=0
  wait "$script" || status=$?
  script=
  [[ $status == "$2" ]] || { tail -n 20 -- "$scratch/$1.log" && false; }
}
says() {
  grep -qF -- "$2" "$scratch/$1.log"
}
is_saved() {
  compgen -G "$scratch/$1/step-*/COMMIT" >/dev/null
}

make_tree
for signal in TERM INT HUP USR1; do
  job "$signal"
  kill -s "$signal" "$script"
  expect "SIG$signal has the ranks save" ends "$signal" 10
  expect "which they do" is_saved "$signal"
  expect "and say" says "$signal" "memphis: stopped by signal "
done

job killed
kill -KILL "$(pgrep --newest --full "/build/[a-z]*/memphis train .* run\.dir=$scratch/killed$")"
expect "a rank that is killed is lost" ends killed 11
expect "and named" says killed "is gone (killed, or out of memory)"

job refused parallel.tensor=3
expect "a bad config has the program's code" ends refused 2

job whole schedule.steps=3
expect "so has a job that is done" ends whole 0

# Paths count from where the user stands: those of the config, of an override, and of the config itself.
mkdir -p -- "$scratch/user" "$scratch/configs"
cp -- "$root/README.md" "$scratch/user/letters.txt"
cp -- "$scratch/tiny.yaml" "$scratch/user/mine.yaml"
cp -- "$scratch/tiny.yaml" "$scratch/configs/shipped.yaml"
stands() {
  (cd -- "$scratch/user" && bash "$scratch/launch/mpirun.sh" 2 "$@" 'data.train=[letters.txt]' \
    run.dir=mine schedule.steps=3 >"$scratch/stands.log" 2>&1) || { tail -n 20 -- "$scratch/stands.log" && false; }
}
expect "a job starts from where the user stands" stands mine.yaml
expect "its run lies there" test -e "$scratch/user/mine/metrics.jsonl"
expect "a config of the repository is found from anywhere" stands configs/shipped.yaml run.resume=auto
expect "and goes on with that run" says stands "nothing to do: mine has step 3"
# Which mpirun takes for a machine of one slot.
HWLOC_SYNTHETIC="core:1 pu:2" expect "two threads of one core have room for two ranks" \
  stands configs/shipped.yaml run.resume=auto
((num_failed == 0))
