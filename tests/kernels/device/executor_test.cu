// SPDX-License-Identifier: Apache-2.0
//
// Kernels with a fault each, and what launch() says of it: the kernel, the block, the thread, the
// line. And kernels without one, which must run as they would on a GPU.
#include "kernels/device/simt/executor.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "csrc/core/device_simt.h"
#include "tests/support/test_tensor.h"

namespace memphis::kernels {
namespace {

using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

// What launch() throws; empty if nothing.
template <class... Parameters, class... Arguments>
std::string fault_of(void (*kernel)(Parameters...), const Launch& shape, Arguments... arguments) {
  try {
    launch(kernel, shape, arguments...);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

AssertionResult says(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    if (message.find(part) == std::string::npos) {
      return AssertionFailure() << "\"" << message << "\" lacks \"" << part << "\"";
    }
  }
  return AssertionSuccess();
}

std::string line(int number) {
  return "tests/kernels/device/executor_test.cu:" + std::to_string(number);
}

Launch one_block(std::int64_t threads, std::size_t shared_bytes = 0) {
  return {.grid = {}, .block = {.x = threads}, .shared_bytes = shared_bytes, .stream = {}};
}

TEST(Launch, FindsTheMultiprocessorsThatOtherStreamsDoNotHold) {
  const std::int64_t all = this_device().num_multiprocessors;
  std::int64_t held = 0;
  const Stream stream = {.device = Device::cuda, .handle = nullptr, .held_elsewhere = &held};
  EXPECT_EQ(free_multiprocessors({.device = Device::cuda}), all);
  EXPECT_EQ(free_multiprocessors(stream), all);
  held = all / 2;
  EXPECT_EQ(free_multiprocessors(stream), all - all / 2);
  held = all;
  EXPECT_EQ(free_multiprocessors(stream), all - all / 2);
}

// Floats on the device, with the values 0, 1, 2 …
class Floats {
 public:
  explicit Floats(std::size_t count)
      : tensor_({{static_cast<std::int64_t>(count)}, DType::f32}, Device::cuda) {
    std::vector<double> values(count);
    std::iota(values.begin(), values.end(), 0.0);
    tensor_.assign(values);
  }
  float* data() const { return tensor_.view().as<float>(); }
  std::vector<double> values() const {
    return tensor_.values({.device = Device::cuda, .handle = nullptr});
  }

 private:
  test::TestTensor tensor_;
};

// Restores what a test changes.
class Simt : public testing::Test {
 protected:
  ~Simt() override { simt::options() = before_; }

 private:
  simt::Options before_ = simt::options();
};

// ---- what works

__global__ void index_kernel(float* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = static_cast<float>(block * threads + thread) + 0.5F;
}

TEST_F(Simt, EveryThreadOfEveryBlockRunsOnce) {
  const Floats out(2 * 3 * 2 * 5 * 3 * 2);
  launch(index_kernel,
         {.grid = {.x = 2, .y = 3, .z = 2}, .block = {.x = 5, .y = 3, .z = 2}, .stream = {}},
         out.data());
  const std::vector<double> values = out.values();
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(values[i], static_cast<double>(i) + 0.5);
  }
}

__global__ void reverse_kernel(float* out, int count) {
  float* const tile = gpu::dynamic_shared<float>();
  const int thread = static_cast<int>(threadIdx.x);
  for (int pass = 0; pass < 3; ++pass) {
    tile[thread] = out[thread];
    gpu::sync_threads();  // the tile is written
    out[thread] = tile[count - 1 - thread];
    gpu::sync_threads();  // the tile is read
  }
}

TEST_F(Simt, BarriersOrderABlockWhateverItsOrder) {
  constexpr int kThreads = 1024;
  for (const std::uint64_t seed : {0U, 1U, 2U, 3U}) {
    simt::options().seed = seed;
    const Floats out(kThreads);
    launch(reverse_kernel, one_block(kThreads, kThreads * sizeof(float)), out.data(), kThreads);
    const std::vector<double> values = out.values();
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(values[i], static_cast<double>(kThreads - 1 - i));
    }
  }
}

__global__ void divergent_kernel(float* out) {
  const int lane = gpu::lane_id();
  float sum = 0.0F;
  for (int i = 0; i < lane; ++i) {  // each lane another number of times
    sum += static_cast<float>(i);
  }
  if (lane % 3 == 0) {
    sum = -sum;
  }
  out[lane] = gpu::warp_sum(sum);
}

TEST_F(Simt, LanesDivergeAndMeetAgain) {
  const Floats out(32);
  launch(divergent_kernel, one_block(32), out.data());
  double expected = 0;
  for (int lane = 0; lane < 32; ++lane) {
    expected += lane * (lane - 1) / 2.0 * (lane % 3 == 0 ? -1 : 1);
  }
  EXPECT_EQ(out.values(), std::vector<double>(32, expected));
}

__global__ void named_barrier_kernel(float* out) {
  float* const tile = gpu::dynamic_shared<float>();
  const int thread = static_cast<int>(threadIdx.x);
  if (gpu::warp_id() == 0) {  // writes for warp 1, and does not wait for it
    tile[thread] = out[thread] * 2.0F;
    simt::arrive_named(1, 64);
  } else if (gpu::warp_id() == 1) {
    simt::sync_named(1, 64);
    out[thread] = tile[thread - 32];
  }
}

TEST_F(Simt, NamedBarriersOrderTheWarpsThatNameThem) {
  const Floats out(96);
  launch(named_barrier_kernel, one_block(96, 128), out.data());
  const std::vector<double> values = out.values();
  for (std::size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(values[32 + i], 2.0 * static_cast<double>(i));
  }
}

__global__ void order_kernel(int* next, float* out) {
  const int place = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
  out[blockIdx.x] = static_cast<float>(place);
}

TEST_F(Simt, TheSeedChangesTheOrderOfBlocksAndNothingElse) {
  simt::options().num_blocks = 1;
  const auto order = [](std::uint64_t seed) {
    simt::options().seed = seed;
    const Floats out(16);
    const test::TestTensor next({{1}, DType::i32}, Device::cuda, {0});
    launch(order_kernel,
           {.grid = {.x = 16}, .block = {}, .stream = {}},
           next.view().as<std::int32_t>(),
           out.data());
    return out.values();
  };
  std::vector<double> ascending(16);
  std::iota(ascending.begin(), ascending.end(), 0.0);
  EXPECT_EQ(order(0), ascending);
  EXPECT_NE(order(1), ascending);
  EXPECT_NE(order(1), order(2));
  EXPECT_EQ(order(1), order(1));
}

__global__ void breakpoint_kernel(float* out) {
  if (simt::at(2, 33)) {
    out[0] = static_cast<float>(blockIdx.x * 100 + threadIdx.x);
  }
}

TEST_F(Simt, AtNamesOneThread) {
  const Floats out(1);
  launch(breakpoint_kernel, {.grid = {.x = 4}, .block = {.x = 64}, .stream = {}}, out.data());
  EXPECT_EQ(out.values(), std::vector<double>{233.0});
}

// ---- memory

constexpr int kPastLine = __LINE__ + 2;
__global__ void past_the_end_kernel(const float* in, float* out, int offset) {
  out[threadIdx.x] = in[static_cast<int>(threadIdx.x) + offset];
}

TEST_F(Simt, AnIndexOutsideOfAnAllocationIsReported) {
  const Floats in(40);
  const Floats out(32);
  EXPECT_EQ(fault_of(past_the_end_kernel, one_block(32), in.data(), out.data(), 8), "");
  EXPECT_TRUE(says(fault_of(past_the_end_kernel, one_block(32), in.data(), out.data(), 9),
                   {"kernel past_the_end_kernel, block (0, 0, 0)",
                    "thread (31, 0, 0) at " + line(kPastLine),
                    "reads 4 bytes of device memory that no live allocation holds",
                    "0 bytes past the end of an allocation of 160 bytes"}));
  EXPECT_TRUE(says(fault_of(past_the_end_kernel, one_block(32), in.data(), out.data(), -1),
                   {"thread (0, 0, 0)", "4 bytes before an allocation of 160 bytes"}));
}

TEST_F(Simt, MemoryThatWasFreedStaysOutOfBounds) {
  const Floats out(32);
  float* stale = nullptr;
  {
    const Floats in(32);
    stale = in.data();
  }
  const Floats other(32);
  EXPECT_TRUE(says(fault_of(past_the_end_kernel, one_block(1), stale, out.data(), 5),
                   {"reads 4 bytes", "at byte 20 of a freed allocation of 128 bytes"}));
}

TEST_F(Simt, AHostPointerIsNotADevicePointer) {
  const std::vector<float> host(32);
  const Floats out(32);
  EXPECT_TRUE(says(fault_of(past_the_end_kernel, one_block(32), host.data(), out.data(), 0),
                   {"reads 4 bytes of memory that is not the device's", "Device::cuda"}));
}

// Not inlined: UBSan, which would see the bounds, is not what is tested here.
__device__ __attribute__((noinline)) float element(const float* tile, int index) {
  return tile[index];
}

__global__ void static_shared_kernel(float* out, int offset) {
  __shared__ float first[32];
  __shared__ float second[32];
  const int thread = static_cast<int>(threadIdx.x);
  first[thread] = 1.0F;
  second[thread] = 2.0F;
  gpu::sync_threads();  // both are written
  out[thread] = element(offset < 0 ? second : first, thread + offset);
}

TEST_F(Simt, AnIndexOutsideOfASharedVariableIsReported) {
  const Floats out(32);
  EXPECT_EQ(fault_of(static_shared_kernel, one_block(32), out.data(), 0), "");
  EXPECT_TRUE(says(fault_of(static_shared_kernel, one_block(32), out.data(), 1),
                   {"thread (31, 0, 0)",
                    "reads 4 bytes outside of the block's shared memory",
                    "byte 128 of 128 of first"}));
  EXPECT_TRUE(says(fault_of(static_shared_kernel, one_block(32), out.data(), -1),
                   {"thread (0, 0, 0)", "outside of the block's shared memory"}));
}

__global__ void dynamic_shared_kernel(float* out) {
  float* const tile = gpu::dynamic_shared<float>();
  tile[threadIdx.x] = 1.0F;
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void undefined_kernel(int* out) {
  out[threadIdx.x] += 2147483647;
}

TEST_F(Simt, UndefinedBehaviourNamesTheThread) {
  std::vector<double> values(40, 0.0);
  values[33] = 1.0;  // the sum of one thread alone overflows
  const test::TestTensor out({{40}, DType::i32}, Device::cuda, values);
  EXPECT_DEATH(launch(undefined_kernel, one_block(40), out.view().as<std::int32_t>()),
               "in kernel undefined_kernel, block .0, 0, 0., thread .33, 0, 0.:");
}

TEST_F(Simt, SharedMemoryEndsWhereTheLaunchSaid) {
  const Floats out(32);
  EXPECT_EQ(fault_of(dynamic_shared_kernel, one_block(32, 128), out.data()), "");
  EXPECT_TRUE(says(fault_of(dynamic_shared_kernel, one_block(32, 124), out.data()),
                   {"thread (31, 0, 0)",
                    "writes 4 bytes outside of the block's shared memory",
                    "byte 124 of 124 of dynamic shared memory"}));
}

constexpr int kUnwrittenLine = __LINE__ + 7;
__global__ void unwritten_kernel(float* out) {
  __shared__ float tile[64];
  if (threadIdx.x != 7) {
    tile[threadIdx.x] = 1.0F;
  }
  gpu::sync_threads();
  out[threadIdx.x] = tile[threadIdx.x];
}

TEST_F(Simt, SharedMemoryThatNobodyWroteIsReported) {
  const Floats out(64);
  for (int launches = 0; launches < 2; ++launches) {  // what another block wrote does not count
    EXPECT_TRUE(says(fault_of(unwritten_kernel, one_block(64), out.data()),
                     {"thread (7, 0, 0) at " + line(kUnwrittenLine),
                      "reads 4 bytes of shared memory that nobody has written",
                      "byte 28 of 256 of tile"}));
  }
}

// ---- barriers and warps

constexpr int kLeaverLine = __LINE__ + 5;
__global__ void leaver_kernel(float* out) {
  if (threadIdx.x >= 40) {
    return;
  }
  gpu::sync_threads();
  out[threadIdx.x] = 1.0F;
}

TEST_F(Simt, AThreadThatMissesABarrierIsReported) {
  const Floats out(64);
  EXPECT_TRUE(
      says(fault_of(leaver_kernel, one_block(64), out.data()),
           {"kernel leaver_kernel",
            "no thread can go on",
            "24 threads, thread (40, 0, 0) the first, left the kernel",
            "40 threads, thread (0, 0, 0) the first, wait for the barrier of the block at " +
                line(kLeaverLine)}));
}

constexpr int kDivergedLine = __LINE__ + 3;
__global__ void two_barriers_kernel(float* out) {
  if (threadIdx.x < 32) {
    gpu::sync_threads();
  } else {
    gpu::sync_threads();
  }
  out[threadIdx.x] = 1.0F;
}

TEST_F(Simt, TwoBarriersAreNotOne) {
  const Floats out(64);
  EXPECT_TRUE(says(fault_of(two_barriers_kernel, one_block(64), out.data()),
                   {"thread (32, 0, 0) at " + line(kDivergedLine + 2),
                    "thread (0, 0, 0) is at " + line(kDivergedLine)}));
}

__global__ void absent_lane_kernel(float* out) {
  if (threadIdx.x >= 24) {
    return;
  }
  out[threadIdx.x] = gpu::shuffle_from(1.0F, threadIdx.x == 16 ? 24 : 0);
}

TEST_F(Simt, AShuffleFromALaneThatLeftIsReported) {
  const Floats out(32);
  EXPECT_TRUE(says(fault_of(absent_lane_kernel, one_block(32), out.data()),
                   {"thread (16, 0, 0)", "shuffles from a lane that has left the kernel"}));
}

__global__ void mixed_instructions_kernel(float* out) {
  out[threadIdx.x] =
      threadIdx.x % 2 == 0 ? static_cast<float>(gpu::ballot(true)) : gpu::shuffle_xor(1.0F, 1);
}

TEST_F(Simt, LanesAtTwoInstructionsAreReported) {
  const Floats out(32);
  EXPECT_TRUE(says(fault_of(mixed_instructions_kernel, one_block(32), out.data()),
                   {"while another lane of its mask waits at another", "converge"}));
}

__global__ void waiting_lane_kernel(float* out) {
  if (threadIdx.x != 3) {
    gpu::sync_warp();
  } else {
    gpu::sync_threads();
  }
  out[threadIdx.x] = 1.0F;
}

TEST_F(Simt, ABlockThatHangsSaysWhoWaitsWhere) {
  const Floats out(32);
  EXPECT_TRUE(says(fault_of(waiting_lane_kernel, one_block(32), out.data()),
                   {"no thread can go on",
                    "31 threads, thread (0, 0, 0) the first, wait for __syncwarp",
                    "1 threads, thread (3, 0, 0) the first, wait for the barrier of the block"}));
}

// ---- launches

__global__ void large_static_kernel(float* out) {
  __shared__ float tile[12 * 1024 + 1];
  tile[threadIdx.x] = 1.0F;
  out[threadIdx.x] = tile[threadIdx.x];
}

TEST_F(Simt, LaunchesAreHeldToTheLimitsOfTheDevice) {
  const Floats out(2048);
  EXPECT_TRUE(says(fault_of(index_kernel, one_block(1025), out.data()), {"1025 x 1 x 1 threads"}));
  EXPECT_TRUE(says(fault_of(index_kernel, one_block(0), out.data()), {"0 x 1 x 1 threads"}));
  EXPECT_TRUE(says(
      fault_of(index_kernel, {.grid = {.y = 65536}, .block = {.x = 32}, .stream = {}}, out.data()),
      {"1 x 65536 x 1 blocks"}));
  EXPECT_EQ(fault_of(dynamic_shared_kernel, one_block(32, 227 * 1024), out.data()), "");
  EXPECT_TRUE(says(fault_of(dynamic_shared_kernel, one_block(32, 227 * 1024 + 1), out.data()),
                   {"232449 bytes of shared memory", "227 KiB"}));
  EXPECT_TRUE(says(fault_of(large_static_kernel, one_block(32), out.data()),
                   {"49156 bytes of static shared memory", "48 KiB"}));
  // Static and dynamic count together.
  EXPECT_TRUE(says(fault_of(static_shared_kernel, one_block(32, 227 * 1024), out.data(), 0),
                   {"233472 bytes of shared memory"}));
  EXPECT_EQ(
      fault_of(index_kernel, {.grid = {.x = 0}, .block = {.x = 32}, .stream = {}}, out.data()), "");
}

// ---- asynchronous copies

enum class CopyFault { none, reads_early, waits_for_too_few, overwrites };

__global__ void copy_kernel(const float* in, float* out, CopyFault planted) {
  float* const tile = gpu::dynamic_shared<float>();
  const int thread = static_cast<int>(threadIdx.x) * 4;
  gpu::copy_async_16(tile + thread, in + thread, true);
  gpu::copy_async_commit();
  gpu::copy_async_16(tile + 128 + thread, in, false);
  gpu::copy_async_commit();
  if (planted == CopyFault::overwrites) {
    tile[thread] = 3.0F;
  }
  if (planted == CopyFault::waits_for_too_few) {
    gpu::copy_async_wait<2>();
  } else if (planted != CopyFault::reads_early) {
    gpu::copy_async_wait<1>();
  }
  out[thread] = tile[thread + 3];
  gpu::copy_async_wait<0>();
  gpu::sync_threads();  // everything is there
  out[thread] += tile[(thread + 4) % 128] + tile[128 + thread];
}

TEST_F(Simt, ACopyIsThereAfterItsWaitAndNotBefore) {
  const Floats in(128);
  const auto run = [&](CopyFault planted, const Floats& out) {
    return fault_of(copy_kernel, one_block(32, 1024), in.data(), out.data(), planted);
  };
  const Floats out(128);
  EXPECT_EQ(run(CopyFault::none, out), "");
  const std::vector<double> values = out.values();
  for (int i = 0; i < 128; i += 4) {
    EXPECT_EQ(values[static_cast<std::size_t>(i)], (i + 3) + (i + 4) % 128);
  }
  const std::string pending = "of shared memory into which an asynchronous copy is under way";
  EXPECT_TRUE(says(run(CopyFault::reads_early, out), {"reads 4 bytes", pending}));
  EXPECT_TRUE(says(run(CopyFault::waits_for_too_few, out), {"reads 4 bytes", pending}));
  EXPECT_TRUE(says(run(CopyFault::overwrites, out), {"writes 4 bytes", pending}));
}

// grid: 1, block: 1
__global__ void take_kernel(float* to, const float* from) {
  *to = *from;
}

// What another thread does on a stream, as NCCL does, comes before kernels that are launched behind it.
TEST(Launch, WaitsForWhatIsPendingOnItsStream) {
  const Floats floats(3);  // 0, 1, 2
  const OwnedStream stream(Device::cuda);
  auto pending = std::make_unique<simt_stream::PendingWork>(stream.view().handle);
  std::thread other([&] {
    // A launch that does not wait would be over by then.
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    const float value = 7;
    device_copy(floats.data() + 1, &value, sizeof(value), {.device = Device::cuda});
    pending.reset();
  });
  Launch shape = one_block(1);
  shape.stream = stream.view();
  launch(take_kernel, shape, floats.data(), static_cast<const float*>(floats.data() + 1));
  other.join();
  EXPECT_EQ(floats.values()[0], 7);
}

// grid: 1, block: 1
__global__ void add_kernel(float* to, const float* from, float value) {
  *to = *from + value;
}

// Arguments are those of the call that was captured, memory is as it lies at the launch.
TEST(Launch, IsRecordedWithItsArgumentsAndRunsWithItsGraph) {
  const Floats floats(3);  // 0, 1, 2
  const OwnedStream stream(Device::cuda);
  Launch shape = one_block(1);
  shape.stream = stream.view();
  float value = 10;
  const Graph graph = [&] {
    Capture capture(stream.view());
    const auto* from = static_cast<const float*>(floats.data() + 1);
    launch(add_kernel, shape, floats.data(), from, value);
    launch(add_kernel, shape, floats.data() + 1, from, value);
    return capture.end().value();
  }();
  EXPECT_EQ(floats.values()[0], 0);
  value = 1000;
  for (const float expected : {11.0F, 21.0F}) {
    graph.launch(stream.view());
    EXPECT_EQ(floats.values()[0], static_cast<double>(expected));
  }
}

// What a launch is refused for, a capture is.
TEST(Launch, IsCheckedWhereItIsCaptured) {
  const Floats floats(3);
  const OwnedStream stream(Device::cuda);
  Capture capture(stream.view());
  Launch shape = one_block(1, std::size_t{228} << 10);
  shape.stream = stream.view();
  EXPECT_THROW(launch(take_kernel, shape, floats.data(), static_cast<const float*>(floats.data())),
               ContractError);
}

}  // namespace
}  // namespace memphis::kernels
