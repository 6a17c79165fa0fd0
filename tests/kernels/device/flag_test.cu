// SPDX-License-Identifier: Apache-2.0
//
// What blocks of one launch tell each other through global memory: tickets, and flags that are
// raised with release and read with acquire.
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "tests/kernels/device/device_array.h"

namespace memphis::kernels {
namespace {

using memphis::test::DeviceArray;

class Flags : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = memphis::test::no_device_reason(80);
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};

Launch blocks(std::int64_t count) {
  return {.grid = {.x = count},
          .block = {.x = 64},
          .stream = {.device = Device::cuda, .handle = nullptr}};
}

// Blocks in the order of their tickets: each multiplies what the one before it has written, which
// shows every other order. A block waits for lower tickets only, whose blocks have begun.
__global__ void in_turns_kernel(int* ticket, int* turn, std::uint32_t* values) {
  __shared__ int own;
  if (threadIdx.x == 0) {
    own = gpu::fetch_add(ticket, 1);
    gpu::wait_at_least(turn, own);
  }
  gpu::sync_threads();  // what the block before has written is seen by all
  values[threadIdx.x] = 3 * values[threadIdx.x] + static_cast<std::uint32_t>(own);
  gpu::sync_threads();  // all values are written
  if (threadIdx.x == 0) {
    gpu::store_release(turn, own + 1);
  }
}

TEST_F(Flags, BlocksTakeTurnsByTicket) {
  constexpr int kBlocks = 50;
  const DeviceArray<int> ticket(1, 0);
  const DeviceArray<int> turn(1, 0);
  const DeviceArray<std::uint32_t> values(64, 1);
  launch(in_turns_kernel, blocks(kBlocks), ticket.data(), turn.data(), values.data());
  std::uint32_t expected = 1;
  for (std::uint32_t i = 0; i < kBlocks; ++i) {
    expected = 3 * expected + i;
  }
  EXPECT_EQ(values.values(), std::vector<std::uint32_t>(64, expected));
  EXPECT_EQ(ticket.values()[0], kBlocks);
  EXPECT_EQ(turn.values()[0], kBlocks);
}

__global__ void look_kernel(int* flag, int* seen) {
  if (threadIdx.x == 0) {
    gpu::store_release(flag, 5);
    seen[0] = gpu::load_acquire(flag);
    gpu::wait_at_least(flag, 5);
    gpu::wait_at_least(flag, -1);
    seen[1] = gpu::fetch_add(flag, -3);
    seen[2] = gpu::load_acquire(flag);
  }
}

TEST_F(Flags, HoldWhatWasStored) {
  const DeviceArray<int> flag(1, 1);
  const DeviceArray<int> seen(3, 0);
  launch(look_kernel, blocks(1), flag.data(), seen.data());
  EXPECT_EQ(seen.values(), (std::vector<int>{5, 5, 2}));
}

}  // namespace
}  // namespace memphis::kernels
