// SPDX-License-Identifier: Apache-2.0
//
// mbarrier, named barriers and setmaxnreg, in the words of the PTX ISA.
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_hopper_barrier.h>
#include <gpu_launch.h>
#include <gpu_warp.h>

#include "tests/kernels/device/device_array.h"

namespace memphis::kernels {
namespace {

using test::DeviceArray;

class Mbarrier : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = test::no_device_reason(90);
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};

Launch one_block(std::int64_t threads) {
  return {.grid = {},
          .block = {.x = threads},
          .shared_bytes = 0,
          .stream = {.device = Device::cuda, .handle = nullptr}};
}

// One thread plays all parts: a phase is complete after as many arrivals as the barrier was
// initialised for, and its parity is its number % 2.
__global__ void phases_kernel(int* out) {
  __shared__ gpu::Mbarrier barrier;
  if (threadIdx.x == 0) {
    gpu::mbarrier_init(&barrier, 3);
    gpu::mbarrier_wait(&barrier, 1);  // "the phase before the first" is complete
    out[0] = 1;
    for (int phase = 0; phase < 5; ++phase) {
      gpu::mbarrier_arrive(&barrier);
      gpu::mbarrier_arrive(&barrier);
      gpu::mbarrier_wait(&barrier, static_cast<unsigned>(phase + 1) % 2);  // still the one before
      gpu::mbarrier_arrive(&barrier);
      gpu::mbarrier_wait(&barrier, static_cast<unsigned>(phase) % 2);
      out[1 + phase] = phase;
    }
    gpu::mbarrier_invalidate(&barrier);
    gpu::mbarrier_init(&barrier, 1);  // a new barrier begins with phase 0
    gpu::mbarrier_arrive(&barrier);
    while (!gpu::mbarrier_try_wait(&barrier, 0)) {
    }
    out[6] = 6;
    gpu::mbarrier_invalidate(&barrier);
  }
}

TEST_F(Mbarrier, APhaseIsCompleteAfterItsArrivals) {
  const DeviceArray<int> out(7, -1);
  launch(phases_kernel, one_block(32), out.data());
  EXPECT_EQ(out.values(), (std::vector<int>{1, 0, 1, 2, 3, 4, 6}));
}

// A producer's warp hands values to two consumers' warps through a ring of two places, as kernels
// hand over tiles. Nothing but the mbarriers orders what they do.
__global__ void ring_kernel(int* out, int rounds) {
  constexpr int kPlaces = 2;
  constexpr int kConsumers = 64;
  __shared__ int ring[kPlaces];
  __shared__ gpu::Mbarrier full[kPlaces];
  __shared__ gpu::Mbarrier empty[kPlaces];
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int place = 0; place < kPlaces; ++place) {
      gpu::mbarrier_init(&full[place], 1);
      gpu::mbarrier_init(&empty[place], kConsumers);
    }
  }
  gpu::sync_threads();  // the mbarriers are there
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const int place = round % kPlaces;
    const unsigned parity = static_cast<unsigned>(round / kPlaces) % 2;
    if (thread == kConsumers) {
      gpu::mbarrier_wait(&empty[place], 1 - parity);
      ring[place] = 3 * round + 1;
      gpu::mbarrier_arrive(&full[place]);
    } else if (thread < kConsumers) {
      gpu::mbarrier_wait(&full[place], parity);
      sum += ring[place];
      gpu::mbarrier_arrive(&empty[place]);
    }
  }
  out[thread] = sum;
}

TEST_F(Mbarrier, OrdersARing) {
  const DeviceArray<int> out(96, -1);
  launch(ring_kernel, one_block(96), out.data(), 11);
  const std::vector<int> values = out.values();
  for (std::size_t i = 0; i < 96; ++i) {
    EXPECT_EQ(values[i], i < 64 ? 3 * 55 + 11 : 0) << i;  // the sum of 3 r + 1 for r below 11
  }
}

// Two warps meet at barrier 1 while a third passes; then warp 0 arrives at barrier 2 and warp 2
// waits there for what warp 0 has written.
__global__ void named_kernel(int* out) {
  __shared__ int pair[64];
  __shared__ int note;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 64) {
    pair[thread] = 10 * thread;
    gpu::sync_named(1, 64);
    out[thread] = pair[63 - thread];
  }
  if (thread == 0) {
    note = 7;
  }
  if (gpu::warp_id() == 0) {
    gpu::sync_warp();
    gpu::arrive_named(2, 64);
  } else if (gpu::warp_id() == 2) {
    gpu::sync_named(2, 64);
    out[thread] = note;
  }
}

TEST_F(Mbarrier, NamedBarriersAreOfSomeWarps) {
  const DeviceArray<int> out(96, -1);
  launch(named_kernel, one_block(96), out.data());
  const std::vector<int> values = out.values();
  for (int i = 0; i < 96; ++i) {
    EXPECT_EQ(values[static_cast<std::size_t>(i)], i < 64 ? 10 * (63 - i) : 7) << i;
  }
}

// What registers a warpgroup may have changes nothing of what it computes. 384 threads begin with
// 168 each; 40 and twice 232 are as many together.
__global__ void __launch_bounds__(384, 1) registers_kernel(int* out) {
  if (threadIdx.x < 128) {
    gpu::decrease_max_registers<40>();
    out[threadIdx.x] = 1;
  } else {
    gpu::increase_max_registers<232>();
    out[threadIdx.x] = 2;
  }
}

TEST_F(Mbarrier, WarpgroupsShareOutRegisters) {
  const DeviceArray<int> out(384, -1);
  launch(registers_kernel, one_block(384), out.data());
  const std::vector<int> values = out.values();
  for (std::size_t i = 0; i < 384; ++i) {
    EXPECT_EQ(values[i], i < 128 ? 1 : 2) << i;
  }
}

}  // namespace
}  // namespace memphis::kernels
