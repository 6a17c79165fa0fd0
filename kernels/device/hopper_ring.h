// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gpu_hopper_barrier.h>
#include <gpu_warp.h>

// Blocks of sm_90a whose first warpgroup produces and whose others consume, and rings of stages in
// shared memory between them. A stage has two mbarriers:
//
//            arrivals a phase                            who waits, and for which parity
//   full     1, the producer's, with the bytes of TMA    readers, parity()
//   empty    one of each warp that reads: release()      the producer, parity() ^ 1
//
// Either side counts the stages that it has passed, in a RingPlace of its own. Count i is the stage
// i % kStages in its round i / kStages, and a round is a phase of both mbarriers: readers wait for
// this round to be full, the producer for the round before to be empty. In round 0 it does not
// wait, as mbarrier_try_wait says of the phase before the first.
namespace memphis::kernels::cuda {

constexpr int kWarpgroup = 128;
constexpr int kWarpsOfGroup = kWarpgroup / gpu::kWarpSize;

// A place in a ring: one register.
template <int kNumStages>
class RingPlace {
 public:
  static constexpr int kStages = kNumStages;

  __device__ __forceinline__ int stage() const { return count_ % kStages; }
  // The stage passed last; at least one has been.
  __device__ __forceinline__ int stage_before() const { return (count_ + kStages - 1) % kStages; }
  // The round's.
  __device__ __forceinline__ unsigned parity() const {
    return static_cast<unsigned>(count_) / kStages % 2;
  }
  // That of a single stage which is filled once a count: it turns each time.
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

// Which consumer this warpgroup is, from 0 on. As if it were read from a lane, so that the compiler
// knows that it is the same in all of them.
__device__ __forceinline__ int consumer_index() {
  return gpu::shuffle_from(static_cast<int>(threadIdx.x) / kWarpgroup - 1, 0);
}

// One arrival for this warp, when all of its lanes have done with what the barrier guards: after a
// wait for products, a barrier or sync_warp.
__device__ __forceinline__ void release(gpu::Mbarrier* empty) {
  if (gpu::elect_one()) {
    gpu::mbarrier_arrive(empty);
  }
}

}  // namespace memphis::kernels::cuda
