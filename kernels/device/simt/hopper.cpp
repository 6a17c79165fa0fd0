// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/hopper.h"

#include "kernels/device/simt/block.h"
#include "kernels/device/simt/cluster.h"

namespace memphis::kernels::simt {

// Each of these is called from a kernel, so its return address is the place in the kernel.
std::uint32_t shared_address(const void* pointer) {
  const ExecutorCall block;
  const auto offset =
      reinterpret_cast<std::uintptr_t>(pointer) -
      reinterpret_cast<std::uintptr_t>(static_cast<const void*>(block->shared().dynamic()));
  if (offset > SharedMemory::kMaxBytes) {
    block->stop({.what = "takes the address of what is not in dynamic shared memory",
                 .advice = "keep what wgmma reads in dynamic shared memory",
                 .pc = __builtin_return_address(0)});
  }
  return SharedMemory::kWindowBegin + static_cast<std::uint32_t>(offset);
}

void mbarrier_init(const void* barrier, int arrivals) {
  ExecutorCall()->mbarriers().init(barrier, arrivals, __builtin_return_address(0));
}
void mbarrier_invalidate(const void* barrier) {
  ExecutorCall()->mbarriers().invalidate(barrier, __builtin_return_address(0));
}
void mbarrier_arrive(const void* barrier, int count, std::int64_t expected_bytes) {
  ExecutorCall()->mbarriers().arrive(barrier, count, expected_bytes, __builtin_return_address(0));
}
void mbarrier_wait(const void* barrier, unsigned parity) {
  ExecutorCall()->mbarriers().wait(barrier, parity, __builtin_return_address(0));
}
void fence_mbarrier_init() {
  ExecutorCall()->mbarriers().fence();
}
void fence_proxy_async() {
  const ExecutorCall block;
  block->shared().fence_proxy(block->thread().id);
  block->mbarriers().fence();
}

void tma_load(void* shared,
              const TensorMap& map,
              const void* mbarrier,
              const Coordinates& corner,
              int num_coordinates) {
  ExecutorCall()->bulk_copies().load(
      shared, map, mbarrier, corner, num_coordinates, __builtin_return_address(0));
}
void tma_load_to_cluster(void* shared,
                         const TensorMap& map,
                         const void* mbarrier,
                         const Coordinates& corner,
                         int num_coordinates,
                         unsigned ranks) {
  const void* const pc = __builtin_return_address(0);
  const ExecutorCall call;
  Block& block = *Block::running();
  block.cluster().load(block, shared, map, mbarrier, corner, num_coordinates, ranks, pc);
}
int cluster_rank() {
  return ExecutorCall()->rank();
}
void cluster_sync() {
  ExecutorCall()->sync_cluster(__builtin_return_address(0));
}
void mbarrier_arrive_at(const void* barrier, int rank) {
  const void* const pc = __builtin_return_address(0);
  const ExecutorCall call;
  Block& block = *Block::running();
  block.cluster().arrive(block, barrier, rank, pc);
}
void tma_prefetch(const TensorMap& map) {
  ExecutorCall()->bulk_copies().prefetch(map, __builtin_return_address(0));
}
void tma_store(const TensorMap& map,
               const void* shared,
               const Coordinates& corner,
               int num_coordinates,
               Combine combine) {
  ExecutorCall()->bulk_copies().store(
      map, shared, corner, num_coordinates, combine, __builtin_return_address(0));
}
void bulk_load(void* shared, const void* global, int bytes, const void* mbarrier) {
  ExecutorCall()->bulk_copies().load(
      shared, global, static_cast<std::uint32_t>(bytes), mbarrier, __builtin_return_address(0));
}
void bulk_store(void* global, const void* shared, int bytes, Combine combine) {
  ExecutorCall()->bulk_copies().store(
      global, shared, static_cast<std::uint32_t>(bytes), combine, __builtin_return_address(0));
}
void tma_commit() {
  ExecutorCall()->bulk_copies().commit();
}
void tma_wait(int pending, bool only_read) {
  ExecutorCall()->bulk_copies().wait(static_cast<std::size_t>(pending), only_read);
}

void wgmma_fence() {
  ExecutorCall()->warpgroups().fence(__builtin_return_address(0));
}
void wgmma(const Wgmma& product, float* d, const std::uint32_t* a) {
  ExecutorCall()->warpgroups().multiply(product, d, a, __builtin_return_address(0));
}
void wgmma_commit() {
  ExecutorCall()->warpgroups().commit(__builtin_return_address(0));
}
void wgmma_keep(const std::uint32_t* a, std::size_t bytes) {
  ExecutorCall()->warpgroups().keep(a, bytes, __builtin_return_address(0));
}
void wgmma_wait(int pending) {
  ExecutorCall()->warpgroups().wait(pending, __builtin_return_address(0));
}
void set_max_registers(int count, bool gives_up) {
  ExecutorCall()->warpgroups().set_max_registers(count, gives_up, __builtin_return_address(0));
}

}  // namespace memphis::kernels::simt
