#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# examples/train_on_your_text/run.sh TEXT_FILE...: trains config.yaml on the files and samples.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../../launch/common.sh"
(($# > 0)) || fail "no text file is given (there is nothing to train on); name one or more"
for file in "$@"; do
  [[ -r $file ]] || fail "$file cannot be read (no such file, or no permission); name a text file"
done

files=$(realpath -e -- "$@" | sed 's/.*/"&"/' | paste -sd ,)
preset=$(preset_to_run)
bash "$root/launch/build.sh" "$preset"
cd -- "$root"
memphis=build/$preset/memphis
"$memphis" train examples/train_on_your_text/config.yaml "data.train=[$files]"
"$memphis" generate runs/your_text --prompt "The "
