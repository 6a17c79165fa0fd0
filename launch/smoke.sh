#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# launch/smoke.sh [section.key=value ...]: from a fresh clone to a small trained model and a sample of
# its text, on the GPU where there is one. Run again, it takes up where the run is and samples again.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

preset=$(default_preset)
bash "$root/launch/build.sh" "$preset"

config=configs/smoke_cpu.yaml
if [[ -n $(gpu_architecture) ]]; then
  if [[ $preset == cuda ]]; then
    config=configs/smoke_gpu.yaml
  else
    note "there is a GPU but no CUDA toolkit 12.8 or newer (the cuda preset needs its nvcc);" \
      "training on the CPU"
  fi
fi

run_dir=runs/smoke
for argument in "$@"; do
  [[ $argument != run.dir=* ]] || run_dir=${argument#run.dir=}
done

cd -- "$root"  # the configs name their paths from here
memphis=build/$preset/memphis
passing_signals_on "$memphis" train "$config" "$@"
"$memphis" generate "$run_dir" --prompt "The "
