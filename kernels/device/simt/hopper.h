// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device/simt/bulk_copies.h"
#include "kernels/device/simt/tensor_map.h"
#include "kernels/device/simt/warpgroups.h"

// What the dialect's gpu_hopper_*.h are made of: instructions of sm_90a, by their PTX definition.
// What is asynchronous on the GPU is done as late as the kernel allows.
namespace memphis::kernels::simt {

// Of dynamic shared memory alone.
std::uint32_t shared_address(const void* pointer);

void mbarrier_init(const void* barrier, int arrivals);
void mbarrier_invalidate(const void* barrier);
void mbarrier_arrive(const void* barrier, int count, std::int64_t expected_bytes);
void mbarrier_wait(const void* barrier, unsigned parity);
void fence_mbarrier_init();
void fence_proxy_async();

void tma_load(void* shared,
              const TensorMap& map,
              const void* mbarrier,
              const Coordinates& corner,
              int num_coordinates);
void tma_load_to_cluster(void* shared,
                         const TensorMap& map,
                         const void* mbarrier,
                         const Coordinates& corner,
                         int num_coordinates,
                         unsigned ranks);
int cluster_rank();
void cluster_sync();
void mbarrier_arrive_at(const void* barrier, int rank);
void tma_prefetch(const TensorMap& map);
void tma_store(const TensorMap& map,
               const void* shared,
               const Coordinates& corner,
               int num_coordinates,
               Combine combine);
void bulk_load(void* shared, const void* global, int bytes, const void* mbarrier);
void bulk_store(void* global, const void* shared, int bytes, Combine combine);
void tma_commit();
void tma_wait(int pending, bool only_read);

void wgmma_fence();
void wgmma(const Wgmma& product, float* d, const std::uint32_t* a);
void wgmma_commit();
// These fragments of `a` are as the products under way took them; called before the wait.
void wgmma_keep(const std::uint32_t* a, std::size_t bytes);
void wgmma_wait(int pending);
void set_max_registers(int count, bool gives_up);

}  // namespace memphis::kernels::simt
