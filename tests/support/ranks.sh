#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# ranks.sh MPIRUN NUM_RANKS PROGRAM ARGUMENT...: the program as so many ranks, where that can be.
set -euo pipefail
# shellcheck source=tests/launch/mpirun_starts.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch/mpirun_starts.sh"

mpirun=$1
num_ranks=$2
shift 2
skip_unless_mpirun_starts "$mpirun"
exec "$mpirun" --allow-run-as-root --oversubscribe -n "$num_ranks" "$@"
