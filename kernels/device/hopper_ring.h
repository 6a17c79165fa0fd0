// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gpu_hopper_barrier.h>
#include <gpu_warp.h>

// Rings of stages in shared memory, which a producer fills by TMA and warpgroups read. Of a stage's
// two mbarriers, `full` says that TMA has written it, `empty` that each warp of the readers has read
// it.
namespace memphis::kernels::cuda {

constexpr int kWarpgroup = 128;
constexpr int kWarpsOfGroup = kWarpgroup / gpu::kWarpSize;

// A place in a ring: one register.
template <int kNumStages>
class RingPlace {
 public:
  static constexpr int kStages = kNumStages;

  __device__ __forceinline__ int stage() const { return count_ % kStages; }
  // That of the place before, of which there has been one.
  __device__ __forceinline__ int stage_before() const { return (count_ + kStages - 1) % kStages; }
  // Of the stage's phase, and of the ring's where it has but one stage.
  __device__ __forceinline__ unsigned parity() const {
    return static_cast<unsigned>(count_) / kStages % 2;
  }
  __device__ __forceinline__ unsigned parity_of_one() const {
    return static_cast<unsigned>(count_) % 2;
  }
  __device__ __forceinline__ void advance() { ++count_; }
  // The same for a whole warp, where a shuffle tells the compiler that descriptors formed of the
  // stage are the same in all lanes: they cost a third of the instructions then.
  __device__ __forceinline__ void advance_uniformly() { count_ = gpu::shuffle_from(count_ + 1, 0); }

 private:
  int count_ = 0;
};

// This warp has read what the barrier guards.
__device__ __forceinline__ void release(gpu::Mbarrier* empty) {
  if (gpu::elect_one()) {
    gpu::mbarrier_arrive(empty);
  }
}

}  // namespace memphis::kernels::cuda
