// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <cuda_runtime.h>
#include <gpu_hopper_tma.h>

// Blocks of a cluster (Launch::cluster), which run at the same time and reach each other's shared
// memory. PTX ISA: "Cluster of Cooperative Thread Arrays", "mapa", "barrier.cluster".
namespace memphis::kernels::gpu {

// This block's number in its cluster, from 0 on.
__device__ __forceinline__ int cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// A barrier of all threads of all blocks of the cluster. Before the first use of another block's
// mbarriers, behind fence_mbarrier_init; and before a block leaves that another may still reach.
__device__ __forceinline__ void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

// Arrives at the mbarrier of block `rank` that lies there where `barrier` lies here: what this warp
// has read may be overwritten by that block's bulk copies. It carries no values: to release what was
// written to the whole cluster costs a fence of the GPU's memory, of hundreds of cycles.
__device__ __forceinline__ void mbarrier_arrive_at(Mbarrier* barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// tma_load to all blocks whose bit in `ranks` is set: in each the box comes to where `shared` lies
// here, and completes on the mbarrier that lies there where `barrier` lies here. It is read once.
__device__ __forceinline__ void tma_load_to_cluster(
    void* shared, const TensorMap& map, Mbarrier* barrier, unsigned ranks, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(shared)),
      "l"(&map),
      "r"(shared_address(barrier)),
      "r"(c0),
      "r"(c1),
      "h"(static_cast<std::uint16_t>(ranks))
      : "memory");
}

}  // namespace memphis::kernels::gpu
