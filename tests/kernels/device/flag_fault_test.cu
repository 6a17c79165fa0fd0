// SPDX-License-Identifier: Apache-2.0
//
// Blocks that wait for each other in ways that stand still on some GPU, and results that are told
// of before they are there: what the executor says and does.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <unistd.h>

#include <gpu_hopper_tma.h>
#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "tests/kernels/device/device_array.h"

namespace memphis::kernels {
namespace {

using memphis::test::DeviceArray;

Launch blocks(std::int64_t count, std::size_t shared_bytes = 0) {
  return {.grid = {.x = count},
          .block = {.x = 64},
          .shared_bytes = shared_bytes,
          .stream = {.device = Device::cuda, .handle = nullptr}};
}

// Options as they were, at the end of a test.
class FlagFaults : public testing::Test {
 protected:
  void TearDown() override { simt::options() = before_; }

  template <class... Parameters, class... Arguments>
  static std::string fault_of(void (*kernel)(Parameters...),
                              const Launch& shape,
                              Arguments... arguments) {
    try {
      launch(kernel, shape, arguments...);
    } catch (const simt::KernelFault& fault) {
      return fault.what();
    }
    return "";
  }

 private:
  simt::Options before_ = simt::options();
};

testing::AssertionResult says(const std::string& message, const std::string& part) {
  return message.find(part) != std::string::npos
             ? testing::AssertionSuccess()
             : testing::AssertionFailure() << "\"" << message << "\" lacks \"" << part << "\"";
}

enum class Turns { by_ticket, by_index };

__global__ void in_turns_kernel(int* ticket, int* turn, int* order, Turns turns) {
  if (threadIdx.x == 0) {
    const int own =
        turns == Turns::by_ticket ? gpu::fetch_add(ticket, 1) : static_cast<int>(blockIdx.x);
    gpu::wait_at_least(turn, own);
    order[own] = static_cast<int>(blockIdx.x);
    gpu::store_release(turn, own + 1);
  }
}

// Blocks begin in any order, and one may begin only when another has ended: a block that waits for
// its neighbour by index can wait for ever, one that waits for lower tickets cannot.
TEST_F(FlagFaults, WaitingForABlockThatMayNotBeginIsReported) {
  constexpr int kBlocks = 20;
  for (const int in_flight : {1, 2}) {
    for (const std::uint64_t seed : {1U, 2U, 3U}) {
      simt::options().num_blocks = in_flight;
      simt::options().seed = seed;
      const DeviceArray<int> ticket(1, 0);
      const DeviceArray<int> turn(1, 0);
      const DeviceArray<int> order(kBlocks, -1);
      const auto run = [&](Turns turns) {
        return fault_of(
            in_turns_kernel, blocks(kBlocks), ticket.data(), turn.data(), order.data(), turns);
      };
      EXPECT_EQ(run(Turns::by_ticket), "");
      EXPECT_EQ(turn.values()[0], kBlocks);
      const std::vector<int> ran = order.values();
      EXPECT_FALSE(std::is_sorted(ran.begin(), ran.end()));

      const DeviceArray<int> fresh(1, 0);
      const std::string message = fault_of(in_turns_kernel,
                                           blocks(kBlocks),
                                           ticket.data(),
                                           fresh.data(),
                                           order.data(),
                                           Turns::by_index);
      EXPECT_TRUE(says(message, "kernel in_turns_kernel, block ("));
      EXPECT_TRUE(says(message, "no thread can go on: "));
      EXPECT_TRUE(
          says(message,
               "1 threads, thread (0, 0, 0) the first, wait for a flag that another block raises "
               "at tests/kernels/device/flag_fault_test.cu:"));
    }
  }
}

// One block waits for a flag that the other never raises, which comes to its end meanwhile.
__global__ void left_alone_kernel(int* turn, int* flag) {
  if (threadIdx.x != 0) {
    return;
  }
  if (gpu::fetch_add(turn, 1) == 0) {
    gpu::wait_at_least(flag, 1);
  } else {
    constexpr unsigned kMicroseconds = 50000;  // the other waits by then, which need not be
    usleep(kMicroseconds);
  }
}

TEST_F(FlagFaults, WaitingWhenAllOthersHaveEndedIsReported) {
  simt::options().num_blocks = 2;
  const DeviceArray<int> turn(1, 0);
  const DeviceArray<int> flag(1, 0);
  EXPECT_TRUE(says(fault_of(left_alone_kernel, blocks(2), turn.data(), flag.data()),
                   "wait for a flag that another block raises"));
}

// A fault of one block is what is said, not that another waits for it in vain.
__global__ void lost_kernel(int* turn, int* out) {
  if (threadIdx.x != 0) {
    return;
  }
  if (gpu::fetch_add(turn, 1) == 0) {
    gpu::wait_at_least(turn, 1000);
  }
  out[1 << 20] = 1;
}

TEST_F(FlagFaults, AFaultIsSaidRatherThanWhatWaitsForIt) {
  simt::options().num_blocks = 2;
  const DeviceArray<int> turn(1, 0);
  const DeviceArray<int> out(1, 0);
  EXPECT_TRUE(says(fault_of(lost_kernel, blocks(2), turn.data(), out.data()),
                   "of device memory that no live allocation holds"));
}

enum class Signal { after_the_write, after_the_read };

// The first block to come stores a box and raises the flag, the second reads it.
__global__ void hand_over_kernel(const __grid_constant__ TensorMap map,
                                 int* ticket,
                                 int* flag,
                                 const float* tensor,
                                 float* out,
                                 Signal signal) {
  auto* const box = gpu::dynamic_shared_for_tma<float>();
  __shared__ int own;
  if (threadIdx.x == 0) {
    own = gpu::fetch_add(ticket, 1);
  }
  box[threadIdx.x] = 7;
  gpu::fence_proxy_async();
  gpu::sync_threads();  // ticket and box are written
  if (threadIdx.x != 0) {
    return;
  }
  if (own == 0) {
    gpu::tma_reduce_add(map, box, 0);
    gpu::tma_commit();
    if (signal == Signal::after_the_write) {
      gpu::tma_wait<0>();
    } else {
      gpu::tma_wait_read<0>();
    }
    gpu::store_release(flag, 1);
    gpu::wait_at_least(flag, 2);
    gpu::tma_wait<0>();
  } else {
    gpu::wait_at_least(flag, 1);
    out[0] = tensor[0];
    gpu::store_release(flag, 2);
  }
}

TEST_F(FlagFaults, AReductionIsThereAfterItsWaitAndNotBefore) {
  simt::options().num_blocks = 2;
  for (const Signal signal : {Signal::after_the_write, Signal::after_the_read}) {
    const DeviceArray<int> ticket(1, 0);
    const DeviceArray<int> flag(1, 0);
    const DeviceArray<float> tensor(64, 5.0F);
    const DeviceArray<float> out(1, -1.0F);
    const TensorMap map = make_tensor_map({.data = tensor.data(),
                                           .dtype = DType::f32,
                                           .dims = {64},
                                           .stride_bytes = {},
                                           .box = {64}});
    EXPECT_EQ(fault_of(hand_over_kernel,
                       blocks(2, 256),
                       map,
                       ticket.data(),
                       flag.data(),
                       tensor.data(),
                       out.data(),
                       signal),
              "");
    EXPECT_EQ(out.values()[0], signal == Signal::after_the_write ? 12.0F : 5.0F);
    EXPECT_EQ(tensor.values()[63], 12.0F);
  }
}

// CUDA gives 48 KiB of static and dynamic shared memory without asking.
__global__ void both_kinds_kernel(float* out) {
  __shared__ float fixed[64];
  auto* const box = gpu::dynamic_shared<float>();
  fixed[threadIdx.x] = 1;
  box[threadIdx.x] = 2;
  gpu::sync_threads();  // both are written
  out[threadIdx.x] = box[threadIdx.x];
}

TEST_F(FlagFaults, SharedMemoryOfBothKindsIsAskedForTogether) {
  constexpr std::size_t kFree = std::size_t{48} << 10;
  EXPECT_EQ(shared_opt_in(0, kFree), 0U);
  EXPECT_EQ(shared_opt_in(0, kFree + 1), kFree + 1);
  EXPECT_EQ(shared_opt_in(128, kFree - 128), 0U);
  EXPECT_EQ(shared_opt_in(128, kFree - 127), kFree - 127);
  const DeviceArray<float> out(64, 0.0F);
  EXPECT_EQ(fault_of(both_kinds_kernel, blocks(1, kFree), out.data()), "");
  EXPECT_EQ(out.values(), std::vector<float>(64, 2.0F));
}

}  // namespace
}  // namespace memphis::kernels
