#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/gpu_ranks.sh [RANKS COMMAND [ARGUMENT ...]]: COMMAND as a job of RANKS processes that share the
# GPUs of this machine, one GPU if it has no more. Without a command: the GPU cases of the tests of the
# collectives and of layouts, with 2 and with 4 ranks, from build/cuda (`launch/build.sh cuda --tests`).
#
# NCCL refuses two ranks on one GPU of one machine. Here each rank is, to NCCL, a machine of its own
# (NCCL_HOSTID), so that all they say goes through sockets of the loopback. That is for correctness: the
# ranks' kernels take turns on the GPU, and a small collective takes milliseconds.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch/common.sh"

# run RANKS COMMAND [ARGUMENT ...]
run() {
  local ranks=$1 name
  shift
  local options=(--bind-to none --oversubscribe -n "$ranks")
  [[ $(id -u) != 0 ]] || options+=(--allow-run-as-root)
  # NVLink between machines and multicast find no peers here. Few and small channels, as the ranks' add up.
  for name in OMP_NUM_THREADS=1 NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_NVLS_ENABLE=0 \
    NCCL_MNNVL_ENABLE=0 NCCL_MAX_CTAS=2 NCCL_BUFFSIZE=1048576; do
    options+=(-x "$name")
  done
  # shellcheck disable=SC2016  # each rank expands it
  mpirun "${options[@]}" bash -c 'NCCL_HOSTID=rank$OMPI_COMM_WORLD_RANK exec "$@"' rank "$@"
}

if (($# > 0)); then
  [[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] ||
    fail "tests/gpu_ranks.sh is given '$*' (it takes a number of ranks and a command, or nothing);" \
      "use it as in \`tests/gpu_ranks.sh 2 build/cuda/tests/conformance_test\`"
  run "$@"
  exit
fi

tests=$root/build/cuda/tests
for name in conformance_test device_layout_test; do
  [[ -x $tests/$name ]] ||
    fail "there is no $tests/$name (tests are not built by default); run launch/build.sh cuda --tests"
done
for ranks in 2 4; do
  run "$ranks" "$tests/conformance_test" --gtest_filter='*nccl_processes*'
  run "$ranks" "$tests/device_layout_test"
done
