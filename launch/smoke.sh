#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# launch/smoke.sh [section.key=value ...]: from a fresh clone to a small trained model and a sample of
# its text, on the GPU where there is one. Run again, it takes up where the run is and samples again.
# The run lies in runs/smoke of this repository unless run.dir says where; paths that are given count
# from where you stand.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

preset=$(preset_to_run)
config=configs/smoke_cpu.yaml
if [[ $preset == cuda ]]; then
  config=configs/smoke_gpu.yaml
elif [[ -n $(gpu_architecture) ]]; then
  note "there is a GPU but no CUDA toolkit 12.8 or newer (the cuda preset needs its nvcc);" \
    "training on the CPU"
fi
bash "$root/launch/build.sh" "$preset"

run_dir=$root/runs/smoke
arguments=()
for argument in "$@"; do
  case $argument in
    run.dir=*) run_dir=${argument#run.dir=} ;;
    *) arguments+=("$argument") ;;
  esac
done

memphis=$root/build/$preset/memphis
passing_signals_on "$to_a_run" "$memphis" train "$root/$config" "run.dir=$run_dir" "${arguments[@]}"

# The sources that it has learned from begin so.
prompt='// SPDX-License-Identifier:'
printf '\nA sample of the model'"'"'s text, which goes on from "%s":\n\n' "$prompt"
"$memphis" generate "$run_dir" --prompt "$prompt" --tokens 400 --temperature 0.5
printf '\nNext: train on your own text, in a few minutes:\n  %s YOUR_TEXT.txt\n' \
  "$root/examples/train_on_your_text/run.sh"
