// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gpu_hopper_tma.h>

#include "kernels/device/simt/hopper.h"

// Blocks that reach each other's shared memory. The counterpart of device/cuda/gpu_hopper_cluster.h,
// which says what each function promises.
namespace memphis::kernels::gpu {

__forceinline__ int cluster_rank() {
  return simt::cluster_rank();
}
__forceinline__ void cluster_sync() {
  simt::cluster_sync();
}
__forceinline__ void mbarrier_arrive_at(Mbarrier* barrier, int rank) {
  simt::mbarrier_arrive_at(barrier, rank);
}
__forceinline__ void tma_load_to_cluster(
    void* shared, const TensorMap& map, Mbarrier* barrier, unsigned ranks, int c0, int c1) {
  simt::tma_load_to_cluster(shared, map, barrier, {c0, c1}, 2, ranks);
}

}  // namespace memphis::kernels::gpu
