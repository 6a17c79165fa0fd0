#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# tests/gpu_ranks.sh RANKS COMMAND [ARGUMENT ...]: COMMAND as a job of RANKS processes that share the GPUs of
# this machine, one GPU if it has no more. `tests/gpu.sh ranks` so runs the tests of collectives and layouts.
#
# NCCL refuses two ranks on one GPU of one machine. Here each rank is, to NCCL, a machine of its own
# (NCCL_HOSTID), so that all they say goes through sockets of the loopback. That is for correctness: the
# ranks' kernels take turns on the GPU, and a small collective takes milliseconds.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch/common.sh"

[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] ||
  fail "tests/gpu_ranks.sh is given '${*:-nothing}' (it takes a number of ranks and a command);" \
    "use it as in \`tests/gpu_ranks.sh 2 build/cuda/tests/conformance_test\`"
ranks=$1
shift
options=(--bind-to none --oversubscribe -n "$ranks")
[[ $(id -u) != 0 ]] || options+=(--allow-run-as-root)
# NVLink between machines and multicast find no peers here. Few and small channels, as the ranks' add up.
# Kernels are loaded at once: a rank that receives what is sent later loads none.
for name in OMP_NUM_THREADS=1 NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1 NCCL_NVLS_ENABLE=0 \
  NCCL_MNNVL_ENABLE=0 NCCL_MAX_CTAS=2 NCCL_BUFFSIZE=1048576 CUDA_MODULE_LOADING=EAGER; do
  options+=(-x "$name")
done
# shellcheck disable=SC2016  # each rank expands it
exec mpirun "${options[@]}" bash -c 'NCCL_HOSTID=rank$OMPI_COMM_WORLD_RANK exec "$@"' rank "$@"
