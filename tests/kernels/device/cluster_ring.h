// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <gpu_hopper_cluster.h>
#include <gpu_launch.h>
#include <gpu_warp.h>

#include "tests/kernels/device/device_array.h"

// A ring of stages that the blocks of a cluster fill for each other, and faults to plant in it.
namespace memphis::test {

enum class ClusterFault : std::uint8_t {
  none,
  no_barrier_after_init,
  no_fence_after_init,  // but in the first block
  refills_early,        // waits for its own readers alone
  arrives_twice,
  leaves_early,
  names_a_rank_too_many,
  forgets_a_block,  // its part goes to itself alone
};

constexpr int kRingStages = 2;
constexpr int kRingRounds = 5;
constexpr int kRingPart = 64;  // floats of a row of the tensor: what a block fetches for all

struct ClusterRing {
  alignas(128) float stage[kRingStages][8 * kRingPart];
  kernels::gpu::Mbarrier full[kRingStages];
  kernels::gpu::Mbarrier empty[kRingStages];
  kernels::gpu::Mbarrier own_empty[kRingStages];  // of this block's readers alone, for a fault
};

// In round i block r fetches row i * blocks + r for all of the cluster, and each copies what has come
// to its part of `out`, [block][round][rank][kRingPart].
//
// grid: clusters, block: 64 threads of which the second warp reads, shared: ClusterRing.
inline __global__ void cluster_ring_kernel(const __grid_constant__ kernels::TensorMap map,
                                           float* out,
                                           int num_blocks,
                                           ClusterFault planted) {
  namespace gpu = kernels::gpu;
  auto& ring = *gpu::dynamic_shared_for_tma<ClusterRing>();
  const int rank = gpu::cluster_rank();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < kRingStages; ++i) {
      gpu::mbarrier_init(&ring.full[i], 1);
      gpu::mbarrier_init(&ring.empty[i], num_blocks);
      gpu::mbarrier_init(&ring.own_empty[i], 1);
    }
    if (planted != ClusterFault::no_fence_after_init || rank == 0) {
      gpu::fence_mbarrier_init();
    }
  }
  if (planted == ClusterFault::no_barrier_after_init) {
    gpu::sync_threads();
  } else {
    gpu::cluster_sync();
  }
  if (thread == 0) {
    for (int i = 0; i < kRingRounds; ++i) {
      const int stage = i % kRingStages;
      const auto parity = static_cast<unsigned>(i / kRingStages % 2);
      gpu::mbarrier_wait(
          planted == ClusterFault::refills_early ? &ring.own_empty[stage] : &ring.empty[stage],
          parity ^ 1U);
      gpu::mbarrier_arrive_expect(&ring.full[stage],
                                  num_blocks * kRingPart * static_cast<int>(sizeof(float)));
      const unsigned all = (1U << static_cast<unsigned>(num_blocks)) - 1U;
      gpu::tma_load_to_cluster(
          ring.stage[stage] + rank * kRingPart,
          map,
          &ring.full[stage],
          planted == ClusterFault::forgets_a_block ? 1U << static_cast<unsigned>(rank) : all,
          0,
          i * num_blocks + rank);
    }
  } else if (thread >= gpu::kWarpSize) {
    const int lane = gpu::lane_id();
    const std::int64_t block = blockIdx.x;
    for (int i = 0; i < kRingRounds; ++i) {
      const int stage = i % kRingStages;
      gpu::mbarrier_wait(&ring.full[stage], static_cast<unsigned>(i / kRingStages % 2));
      float* const to = out + (block * kRingRounds + i) * num_blocks * kRingPart;
      for (int k = lane; k < num_blocks * kRingPart; k += gpu::kWarpSize) {
        to[k] = ring.stage[stage][k];
      }
      gpu::fence_proxy_async();
      gpu::sync_warp();
      if (lane == 0) {
        gpu::mbarrier_arrive(&ring.own_empty[stage]);
      }
      // Lane r tells block r that this block has read.
      const int told = planted == ClusterFault::names_a_rank_too_many ? lane + 1 : lane;
      if (lane < num_blocks) {
        gpu::mbarrier_arrive_at(&ring.empty[stage], told);
        if (planted == ClusterFault::arrives_twice) {
          gpu::mbarrier_arrive_at(&ring.empty[stage], told);
        }
      }
    }
  }
  if (planted != ClusterFault::leaves_early) {
    gpu::cluster_sync();
  }
}

// Runs it on `num_clusters` of `num_blocks`: what each block has copied.
inline std::vector<float> run_cluster_ring(int num_clusters,
                                           int num_blocks,
                                           ClusterFault planted = ClusterFault::none) {
  const int rows = kRingRounds * num_blocks;
  std::vector<float> numbers;
  for (int i = 0; i < rows * kRingPart; ++i) {
    numbers.push_back(static_cast<float>(i));
  }
  const DeviceArray<float> in(numbers);
  const DeviceArray<float> out(
      static_cast<std::size_t>(num_clusters * num_blocks * rows * kRingPart), -1.0F);
  const kernels::TensorMap map =
      kernels::make_tensor_map({.data = in.data(),
                                .dtype = DType::f32,
                                .dims = {kRingPart, rows},
                                .stride_bytes = {kRingPart * sizeof(float)},
                                .box = {kRingPart, 1}});
  kernels::launch(cluster_ring_kernel,
                  {.grid = {.x = std::int64_t{num_clusters} * num_blocks},
                   .block = {.x = 2 * kernels::gpu::kWarpSize},
                   .shared_bytes = sizeof(ClusterRing),
                   .cluster = num_blocks,
                   .stream = {.device = Device::cuda, .handle = nullptr}},
                  map,
                  out.data(),
                  num_blocks,
                  planted);
  return out.values();
}

}  // namespace memphis::test
