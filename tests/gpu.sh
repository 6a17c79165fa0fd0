#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/gpu.sh [--rehearse] [--results FOLDER] [--seconds N] [--build FOLDER] [STAGE ...]: all that is to be
# seen on a GPU, most telling first, where one is at hand for half an hour: from a bundle (launch/bundle.sh
# cuda --tests) on a machine that has nothing else, or from a tree with build/cuda. The stages:
#
#   instructions  the wrappers of PTX against the tables of its manual
#   ops           every op on the GPU against its specification on the CPU
#   training      gradients and losses of a training step against the CPU's
#   steps         memphis bench step
#   smoke         configs/smoke_gpu.yaml trained, whose loss must fall
#   kernels       memphis bench kernels
#   proxies       memphis bench step of parts of Grok-1 that fill the GPU
#   ranks         collectives and layouts with 2 and 4 ranks that share the GPU
#   peers         PyTorch and memphis in turns: whole steps, their losses where the model is small, attention
#   sanitize      compute-sanitizer over the first two, small shapes: memcheck, then racecheck
#
# A stage is a row of items. Each leaves what it printed in FOLDER/STAGE/ITEM.out and .err, and its verdict
# in .verdict; an item that has one is not run again, so that what was cut short goes on when this is started
# again (to run one again, remove its verdict). FOLDER is runs/gpu unless --results names another. A stage is
# cut after less than nine minutes and says so, and with --seconds everything ends within as many. Stages
# that were cut go on after the others. tests/benchmarks.py FOLDER puts the figures into BENCHMARKS.md.
#
# FOLDER.tgz is all of it in one file, but for checkpoints, and is gone on from where FOLDER is not there:
# for machines whose disks do not outlive a command.
#
# --rehearse runs all of it on the simulated device (the simt preset), a few cases of each item, so that no
# minute on a GPU is lost to this script; items and stages then have ten times as long, for the machine may have
# much else to do. The last line is `N passed, N failed, N skipped, N left`; the status is 1 where an item
# failed, 10 where some are left, else 0.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch/common.sh"

all_stages=(instructions ops training steps smoke kernels proxies ranks peers sanitize)
stage_seconds=520  # and ten to end what is cut
slack=1            # of limits
rehearse=
build=
results=$root/runs/gpu
call_seconds=
print_programs=
stages=()
while (($# > 0)); do
  argument=$1
  shift
  case $argument in
    --rehearse) rehearse=1 ;;
    --programs) print_programs=1 ;;  # the tests that it runs, for launch/bundle.sh
    --results | --seconds | --build)
      (($# > 0)) || fail "$argument is given nothing (it takes one value); use it as in the head of tests/gpu.sh"
      case $argument in
        --results) results=$1 ;;
        --seconds) call_seconds=$1 ;;
        --build) build=$1 ;;
      esac
      shift
      ;;
    *)
      [[ " ${all_stages[*]} " == *" $argument "* ]] ||
        fail "there is no stage $argument (they are ${all_stages[*]}); leave it out"
      stages+=("$argument")
      ;;
  esac
done
((${#stages[@]} > 0)) || stages=("${all_stages[@]}")
[[ -z $call_seconds || $call_seconds =~ ^[1-9][0-9]*$ ]] ||
  fail "--seconds is $call_seconds (it takes a number of seconds); use --seconds 570, say"
build=${build:-$root/build/$([[ -n $rehearse ]] && echo simt || echo cuda)}
tests=$build/tests
[[ -e $tests/stages.txt ]] ||
  fail "there is no $tests/stages.txt (it lists the tests of the first stages);" \
    "run \`launch/build.sh ${build##*/} --tests\`, or bundle with --tests"

# tests_of STAGE
tests_of() {
  sed -n "s/^$1 //p" "$tests/stages.txt"
}
read -ra instruction_tests < <(tests_of instructions) || true
read -ra op_tests < <(tests_of ops)
training_tests=(device_test device_gradient_test recompute_test step_graphs_test device_agreement_test)
rank_tests=(conformance_test device_layout_test)
if [[ -n $print_programs ]]; then
  printf '%s\n' "${instruction_tests[@]}" "${op_tests[@]}" "${training_tests[@]}" "${rank_tests[@]}"
  exit
fi

cd -- "$root"
run=()  # what sets up the libraries of a bundle
if [[ -e $root/MANIFEST && -x $root/run ]]; then
  run=("$root/run")
fi
memphis=("${run[@]}" "$build/memphis")

# Results of another build would be taken for this one's.
identity=$(grep '^commit: ' "$root/MANIFEST" 2>/dev/null ||
  echo "commit: $(git describe --always --dirty 2>/dev/null || echo unknown)")
identity+=$'\n'"rehearsal: ${rehearse:-0}"
mkdir -p -- "$(dirname -- "$results")"
if [[ ! -e $results && -e $results.tgz &&
  $(tar -xzOf "$results.tgz" "$(basename -- "$results")/build.txt" 2>/dev/null) == "$identity" ]]; then
  tar -C "$(dirname -- "$results")" -xzf "$results.tgz"
fi
mkdir -p -- "$results"
results=$(realpath -- "$results")
if [[ -e $results/build.txt && $(cat -- "$results/build.txt") != "$identity" ]]; then
  fail "$results has results of another build ($(tr '\n' ' ' <"$results/build.txt"));" \
    "name another folder by --results, or remove that one"
fi
printf '%s\n' "$identity" >"$results/build.txt"
if [[ -n $rehearse ]]; then
  echo "the simulated device" >"$results/machine.txt"
  slack=10
  stage_seconds=$((stage_seconds * slack))
  # Nothing that a stage does depends on time here but whether it is cut.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ASAN_OPTIONS=detect_leaks=0
else
  nvidia-smi >"$results/machine.txt" 2>&1 ||
    fail "nvidia-smi finds no GPU ($(tail -n 1 "$results/machine.txt")); rehearse with --rehearse"
fi

export GTEST_COLOR=no  # mpirun gives ranks a terminal
unset GTEST_OUTPUT          # the report of a suite that rehearses this, whose own tests have these names

child=
stopped=
# shellcheck disable=SC2317  # the traps call it
stop() {
  stopped=$1
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}
trap 'stop 129' HUP
trap 'stop 130' INT
trap 'stop 143' TERM

began=$SECONDS
stage=
stage_ends=0

# verdict_of STATUS OUT: of an item that ended by itself, `passed`, `failed WHY` or `skipped WHY`. Of a
# test's cases some must have run: on a machine that lacks what they need they all pass over.
verdict_of() {
  local status=$1 out=$2 passed skipped
  if ((status != 0)); then
    echo "failed with status $status"
  elif [[ ${out##*/} == *_test*.out ]]; then
    passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$out" | tail -n 1)
    skipped=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test.*/\1/p' "$out" | tail -n 1)
    if ((${passed:-0} == 0)); then
      echo "failed as no case ran (${skipped:-0} were skipped)"
    else
      echo "passed $passed cases${skipped:+, $skipped skipped}"
    fi
  elif grep -q '^SKIP: ' "$out"; then
    sed -n 's/^SKIP: /skipped as /p' "$out" | head -n 1
  else
    echo passed
  fi
}

# item NAME SECONDS COMMAND [ARGUMENT ...]: runs it, unless it has its verdict. One that is not done in
# SECONDS, or ten times as many in a rehearsal, has failed; one that the end of its stage or of this call
# cuts is left for the next start.
item() {
  local name=$1 limit=$(($2 * slack)) folder=$results/$stage seconds status=0 verdict ends start
  shift 2
  [[ ! -e $folder/$name.verdict ]] || return 0
  ends=$stage_ends
  if [[ -n $call_seconds ]] && ((began + call_seconds - 10 < ends)); then
    ends=$((began + call_seconds - 10))
  fi
  seconds=$((ends - SECONDS))
  if [[ -n $stopped ]] || ((seconds <= 0)); then
    left=$((left + 1))
    return
  fi
  ((seconds < limit)) || seconds=$limit
  mkdir -p -- "$folder"
  start=$SECONDS
  start timeout --kill-after=8 "$seconds" "$@" >"$folder/$name.out" 2>"$folder/$name.err" </dev/null
  child=$started
  [[ -z $stopped ]] || stop "$stopped"  # by a signal that came before it was there
  await "$child" || status=$?
  child=
  if [[ -n $stopped ]]; then
    left=$((left + 1))
    return
  fi
  if ((status == 124 || status == 137)) && ((SECONDS - start >= seconds)); then
    if ((seconds < limit)); then
      note "  $name is cut after $seconds s"
      left=$((left + 1))
      return
    fi
    verdict="failed as it did not end in $limit s"
  else
    verdict=$(verdict_of "$status" "$folder/$name.out")
  fi
  echo "$verdict" >"$folder/$name.verdict"
  note "  $(printf '%4d s  %-40s %s' $((SECONDS - start)) "$name" "$verdict")"
  if [[ $verdict == failed* ]]; then
    tail -qn 12 -- "$folder/$name.out" "$folder/$name.err" | cut -c 1-200 | sed 's/^/    | /' >&2
  fi
}

# gtest NAME SECONDS SHARDS TEST [ARGUMENT ...]: a rehearsal takes the first of SHARDS shards of its cases.
gtest() {
  local name=$1 seconds=$2 shards=$3 test=$4
  shift 4
  local command=("${run[@]}" "${prefix[@]}" "$tests/$test" "$@")
  [[ -z $rehearse ]] || command=(env GTEST_TOTAL_SHARDS="$shards" GTEST_SHARD_INDEX=0 "${command[@]}")
  item "$name" "$seconds" "${command[@]}"
}

stage_instructions() {
  local test
  for test in "${instruction_tests[@]}"; do
    gtest "$test" 60 4 "$test"
  done
}

# Those of a device have its name; these use the GPU and have not.
gpu_cases='*cuda*:MatmulChoices.*:CublasLt.*:OpProfile*:Attention.GradientsNeedNoWorkspace:HopperBackward.*'
gpu_cases+=':RmsNormSandwich.*:PermuteRoundTrip.*:GroupedMatmulContract.*'
stage_ops() {
  local test
  for test in "${op_tests[@]}"; do
    gtest "$test" 240 40 "$test" --gtest_filter="$gpu_cases"
  done
}

stage_training() {
  gtest device_test 60 1 device_test --gtest_filter='*cuda*:Graphs.*'
  gtest device_gradient_test 240 2 device_gradient_test
  gtest recompute_test 240 1 recompute_test --gtest_filter='*Device*'
  gtest step_graphs_test 240 4 step_graphs_test
  if [[ -n $rehearse ]]; then  # its steps take minutes there
    item device_agreement 60 "${run[@]}" "$tests/device_agreement_test" --gtest_list_tests
  else
    item device_agreement_test 240 "${run[@]}" "$tests/device_agreement_test" --gtest_filter='*Gpu*'
  fi
}

# Instrumented code runs some hundred times slower: the large shapes stay out. The simulated device checks
# memory and races in every run. Of bulk copies that are no tensor's, racecheck takes those of a ring of
# stages for races.
stage_sanitize() {
  local tool test options prefix=()
  if [[ -z $rehearse ]] && ! command -v compute-sanitizer >/dev/null; then
    PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer
  fi
  if [[ -z $rehearse ]] &&
    ! timeout 60 "${run[@]}" compute-sanitizer --tool memcheck "$tests/${instruction_tests[0]}" >"$results/sanitizer.txt" 2>&1 &&
    grep -qi 'not supported' "$results/sanitizer.txt"; then
    item compute-sanitizer 30 echo "SKIP: compute-sanitizer says that this device is not supported"
    return
  fi
  for tool in memcheck racecheck; do
    options=(--error-exitcode 1)
    # What the driver lacks is asked for too, and answered by an error that is none.
    [[ $tool != memcheck ]] || options+=(--report-api-errors explicit)
    [[ -n $rehearse ]] || prefix=(compute-sanitizer --tool "$tool" "${options[@]}")
    for test in "${instruction_tests[@]}"; do
      [[ $tool != racecheck || $test != bulk_test ]] || continue
      gtest "$tool-$test" 120 8 "$test"
    done
    for test in "${op_tests[@]}"; do
      case $tool-$test in
        *-cublas_lt_test) continue ;;                           # no kernel is run
        racecheck-matmul_test | racecheck-attention_test) continue ;;  # not ours; bulk copies
      esac
      gtest "$tool-$test" 180 80 "$test" --gtest_filter='*cuda*-*large*:*grok*:*small_model*'
    done
  done
}

# Attention first, by itself. A rehearsal takes two ops that are quick to simulate.
stage_kernels() {
  local kernels=("${memphis[@]}" bench kernels --device cuda --json)
  if [[ -n $rehearse ]]; then
    item attention 240 "${kernels[@]}" --filter rope
    item all 240 "${kernels[@]}" --filter rmsnorm
  else
    item attention 400 "${kernels[@]}" --filter attention
    item all 400 "${kernels[@]}"
  fi
}

# A model of no use, for the simulated device.
tiny=(model.vocab_size=264 model.num_layers=1 model.d_model=32 model.num_heads=2 model.num_kv_heads=1
  model.head_dim=16 model.ffn_dim=32 model.num_experts=2 batch.sequence_length=32 batch.micro_batch=1
  batch.global_batch=1 'data.train=[README.md]')

stage_smoke() {
  local overrides=()
  [[ -z $rehearse ]] || overrides=("${tiny[@]}" schedule.steps=3 schedule.warmup_steps=1 metrics.every=1
    metrics.validate_every=0 metrics.sample_every=0 checkpoint.every=3)
  item train 500 "${memphis[@]}" train configs/smoke_gpu.yaml run.dir="$results/smoke/run" "${overrides[@]}"
  [[ -e $results/smoke/train.verdict ]] || return 0
  # shellcheck disable=SC2016  # awk expands it
  item loss_falls 30 awk -v few="${rehearse:+1}" '
    match($0, /"loss": *[0-9.]+/) {
      loss = substr($0, RSTART, RLENGTH); sub(/.*: */, "", loss)
      if (first == "") first = loss
      last = loss
    }
    END {
      printf "from %s to %s nats a token\n", first, last
      exit !(first != "" && (few || last + 0 < 0.7 * first))
    }' "$results/smoke/run/metrics.jsonl"
}

# The smoke config, and a slice of a larger model with Grok's heads of 128.
stage_steps() {
  local overrides=()
  [[ -z $rehearse ]] || overrides=("${tiny[@]}" --steps 1)
  item smoke_gpu 240 "${memphis[@]}" bench step configs/smoke_gpu.yaml --json "${overrides[@]}"
  [[ -n $rehearse ]] || overrides=(model.d_model=2048 model.num_heads=16 model.num_kv_heads=2 model.head_dim=128
    model.ffn_dim=5504 batch.sequence_length=4096 batch.micro_batch=2 batch.global_batch=4)
  item heads_of_128 270 "${memphis[@]}" bench step configs/smoke_gpu.yaml --json "${overrides[@]}"
}

few_gigabytes() {
  (($(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1) < 100000))
}

# Parts of Grok-1, and a smaller model of its kind: half of that where a GPU has not 100 GB. Then the first with
# twice the rows a micro-batch, of which the planner expects more.
stage_proxies() {
  local config configs=(bench_grok_mini bench_grok1_eighth bench_grok1_layer) overrides=()
  if [[ -n $rehearse ]]; then
    configs=(bench_grok_mini)
    overrides=("${tiny[@]}" --steps 1)
  elif few_gigabytes; then
    configs=(bench_grok_mini_half)
  fi
  for config in "${configs[@]}"; do
    item "$config" 240 "${memphis[@]}" bench step "configs/$config.yaml" --json "${overrides[@]}"
  done
  [[ -n $rehearse ]] || overrides=(batch.micro_batch=2)
  item "${configs[0]}_of_2" 240 "${memphis[@]}" bench step "configs/${configs[0]}.yaml" --json "${overrides[@]}"
}

stage_ranks() {
  local ranks part sharing=("${run[@]}" bash tests/gpu_ranks.sh)
  for ranks in 2 4; do
    local few=()
    [[ -z $rehearse ]] || few=(env GTEST_TOTAL_SHARDS=4 GTEST_SHARD_INDEX=0)
    item "conformance_test_$ranks" 300 "${few[@]}" "${sharing[@]}" "$ranks" "$tests/conformance_test" \
      --gtest_filter='*nccl_processes*'
    if [[ -n $rehearse ]]; then  # its runs take minutes there
      item "device_layout_$ranks" 60 "${sharing[@]}" "$ranks" "$tests/device_layout_test" --gtest_list_tests
      continue
    fi
    # In parts, so that what is cut does not begin again.
    for part in 0 1 2 3; do
      item "device_layout_test_${ranks}_$part" 240 env GTEST_TOTAL_SHARDS=4 GTEST_SHARD_INDEX=$part \
        "${sharing[@]}" "$ranks" "$tests/device_layout_test"
    done
  done
}

# In turns, so that a machine that slows down slows down both. Of the model whose steps are timed there is no
# room for all that a comparison of losses needs (tests/peers/step.py).
stage_peers() {
  local turn peers=(python3 tests/peers/attention.py) config=configs/bench_grok_mini.yaml
  local steps=(python3 tests/peers/step.py --memphis "$(printf '%q ' "${memphis[@]}")")
  if ! command -v python3 >/dev/null || ! python3 -c 'import torch' 2>/dev/null; then
    item pytorch 30 echo "SKIP: python3 has no PyTorch"
    [[ -n $rehearse ]] || return 0
    item pytorch_shapes 30 "${peers[@]}" --list
    return
  fi
  if [[ -n $rehearse ]]; then
    item step_rates 200 "${steps[@]}" --config configs/smoke_cpu.yaml --rates-alone --rounds 1 --steps 1 --json \
      "${tiny[@]:0:${#tiny[@]}-1}" # its text is its own
  else
    few_gigabytes && config=configs/bench_grok_mini_half.yaml
    # Longer than a stage: what is cut goes on, and torch.compile then finds what it has compiled.
    item step_rates 600 "${steps[@]}" --device cuda --config "$config" --rates-alone --rounds 1 --steps 8 --json
    item step_losses 600 "${steps[@]}" --device cuda --config "$config" --compare-steps 500 --draws 1 --rounds 0 \
      model.vocab_size=8192 model.num_layers=2 model.d_model=1024 model.num_heads=8 model.num_kv_heads=2 \
      model.ffn_dim=2816 batch.sequence_length=1024 batch.micro_batch=2 batch.global_batch=4
  fi
  for turn in 1 2; do
    [[ -n $rehearse ]] ||
      item "memphis_$turn" 100 "${memphis[@]}" bench kernels --device cuda --json --filter attention
    if [[ -n $rehearse ]]; then
      item "pytorch_$turn" 60 "${peers[@]}" --list
    else
      item "pytorch_$turn" 170 "${peers[@]}" --seconds 100
    fi
  done
}

# All results in one file, again after each stage.
pack_results() {
  tar -C "$(dirname -- "$results")" --exclude='*/smoke/run/step-*' -czf "$results.tgz.part" "$(basename -- "$results")" ||
    return 0
  mv -- "$results.tgz.part" "$results.tgz"
}

# Whether a stage was cut at its limit is kept: others come first at the next start.
run_stage() {
  stage=$1
  left=0
  prefix=()
  stage_ends=$((SECONDS + stage_seconds))
  note "$stage"
  "stage_$stage"
  if ((left == 0)); then
    rm -f -- "$results/$stage.cut"
  elif ((SECONDS >= stage_ends)); then
    : >"$results/$stage.cut"
    note "  $stage is cut at its $stage_seconds s with $left items left; start again to go on with it"
  fi
}

first=()
later=()
for one in "${stages[@]}"; do
  if [[ -e $results/$one.cut ]]; then
    later+=("$one")
  else
    first+=("$one")
  fi
done
total_left=0
for one in "${first[@]}" "${later[@]}"; do
  run_stage "$one"
  pack_results
  total_left=$((total_left + left))
done

# What is known of all stages, whenever they ran.
for one in "${all_stages[@]}"; do
  for file in "$results/$one"/*.verdict; do
    [[ ! -e $file ]] || printf '%-13s %-40s %s\n' "$one" "$(basename -- "$file" .verdict)" "$(cat -- "$file")"
  done
done >"$results/summary.txt"
counted() {
  awk -v verdict="$1" '$3 == verdict {count++} END {print count + 0}' "$results/summary.txt"
}
failed=$(counted failed)
grep -E '^[a-z]+ +[^ ]+ +(failed|skipped)' "$results/summary.txt" >&2 || true
echo "$(counted passed) passed, $failed failed, $(counted skipped) skipped, $total_left left" |
  tee -a "$results/summary.txt"
pack_results
[[ -z $stopped ]] || exit "$stopped"
((failed == 0)) || exit 1
((total_left == 0)) || exit 10
