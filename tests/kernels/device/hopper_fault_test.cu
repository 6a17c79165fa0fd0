// SPDX-License-Identifier: Apache-2.0
//
// Kernels that misuse what is asynchronous on Hopper, each beside its repair: what the executor
// says of the fault, and where.
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_hopper_barrier.h>
#include <gpu_hopper_tma.h>
#include <gpu_hopper_wgmma.h>
#include <gpu_launch.h>
#include <gpu_mma.h>
#include <gpu_warp.h>

#include "tests/kernels/device/device_array.h"

namespace memphis::kernels {
namespace {

using memphis::test::DeviceArray;
using testing::AssertionFailure;
using testing::AssertionResult;
using testing::AssertionSuccess;

Launch one_block(std::int64_t threads, std::size_t shared_bytes) {
  return {.grid = {},
          .block = {.x = threads},
          .shared_bytes = shared_bytes,
          .stream = {.device = Device::cuda, .handle = nullptr}};
}

// What launch() throws, in several orders of the threads; empty if none throws.
template <class... Parameters, class... Arguments>
std::string fault_of(void (*kernel)(Parameters...), const Launch& shape, Arguments... arguments) {
  const simt::Options before = simt::options();
  std::string message;
  for (std::uint64_t seed = 0; seed < 8 && message.empty(); ++seed) {
    simt::options().seed = seed;
    try {
      launch(kernel, shape, arguments...);
    } catch (const simt::KernelFault& fault) {
      message = fault.what();
    }
  }
  simt::options() = before;
  return message;
}

AssertionResult says(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    if (message.find(part) == std::string::npos) {
      return AssertionFailure() << "\"" << message << "\" lacks \"" << part << "\"";
    }
  }
  return AssertionSuccess();
}

constexpr int kRow = 64;  // floats of a box
constexpr int kRowBytes = kRow * 4;

// Rows of 64 floats, with the values 0, 1, 2 …
class Rows {
 public:
  explicit Rows(int count) : data_(numbers(count * kRow)), count_(count) {}
  TensorMap map() const {
    return make_tensor_map({.data = data_.data(),
                            .dtype = DType::f32,
                            .dims = {kRow, count_},
                            .stride_bytes = {kRowBytes},
                            .box = {kRow, 1}});
  }
  std::vector<float> values() const { return data_.values(); }

 private:
  static std::vector<float> numbers(int count) {
    std::vector<float> result;
    for (int i = 0; i < count; ++i) {
      result.push_back(static_cast<float>(i));
    }
    return result;
  }

  DeviceArray<float> data_;
  std::int64_t count_;
};

// ---- mbarriers and loads

enum class LoadFault {
  none,
  reads_early,
  overwrites,
  expects_too_much,
  expects_too_little,
  no_init_fence,
  no_barrier_after_init,
  not_initialised,
  touches_the_mbarrier,
  arrives_twice,
  misaligned,
  unfenced_write,
  unfenced_read,
  nobody_waits,
  refills_early,
  begins_within_a_chunk,
};

// Two rows, one after the other, through the same place.
__global__ void load_kernel(const __grid_constant__ TensorMap map, float* out, LoadFault planted) {
  auto* const box = gpu::dynamic_shared_for_tma<float>();
  __shared__ gpu::Mbarrier full;
  __shared__ gpu::Mbarrier empty;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0 && planted != LoadFault::not_initialised) {
    gpu::mbarrier_init(&full, 1);
    gpu::mbarrier_init(&empty, kRow);
    if (planted != LoadFault::no_init_fence) {
      gpu::fence_mbarrier_init();
    }
  }
  if (planted != LoadFault::no_barrier_after_init) {
    gpu::sync_threads();  // the mbarriers are there
  }
  if (planted == LoadFault::unfenced_write) {
    box[thread] = 0;
    gpu::sync_threads();
  }
  if (planted == LoadFault::touches_the_mbarrier && thread == 1) {
    out[0] = static_cast<float>(full.state);
  }
  float sum = 0;
  for (int row = 0; row < 2; ++row) {
    const unsigned parity = static_cast<unsigned>(row);
    if (thread == 0) {
      if (planted != LoadFault::refills_early) {
        gpu::mbarrier_wait(&empty, 1 - parity);
      }
      const int expected = planted == LoadFault::expects_too_much     ? kRowBytes + 16
                           : planted == LoadFault::expects_too_little ? kRowBytes - 16
                                                                      : kRowBytes;
      gpu::mbarrier_arrive_expect(&full, expected);
      if (planted == LoadFault::arrives_twice) {
        gpu::mbarrier_arrive(&full);
      }
      gpu::tma_load(box + (planted == LoadFault::misaligned ? 4 : 0),
                    map,
                    &full,
                    planted == LoadFault::begins_within_a_chunk ? 2 : 0,
                    row);
      if (planted == LoadFault::reads_early) {
        sum += box[thread];
      }
      if (planted == LoadFault::overwrites) {
        box[thread] = 1;
      }
    }
    if (planted == LoadFault::nobody_waits) {
      return;
    }
    gpu::mbarrier_wait(&full, parity);
    sum += box[thread];
    if (planted != LoadFault::unfenced_read) {
      gpu::fence_proxy_async();
    }
    gpu::mbarrier_arrive(&empty);
  }
  out[thread] = sum;
}

TEST(LoadFaults, AreReported) {
  const Rows rows(2);
  const DeviceArray<float> out(kRow, -1.0F);
  const auto run = [&](LoadFault planted) {
    return fault_of(load_kernel, one_block(kRow, 512), rows.map(), out.data(), planted);
  };
  EXPECT_EQ(run(LoadFault::none), "");
  const std::vector<float> values = out.values();
  for (int i = 0; i < kRow; ++i) {
    EXPECT_EQ(values[static_cast<std::size_t>(i)], static_cast<float>(2 * i + kRow));
  }
  const std::string pending = "of shared memory into which an asynchronous copy is under way";
  EXPECT_TRUE(says(run(LoadFault::begins_within_a_chunk),
                   {"a box whose innermost coordinate is not at whole 16 bytes of its row"}));
  EXPECT_TRUE(says(run(LoadFault::reads_early),
                   {"kernel load_kernel",
                    "thread (0, 0, 0) at tests/kernels/device/hopper_fault",
                    "reads 4 bytes",
                    pending,
                    "byte 0 of 512 of dynamic shared memory"}));
  EXPECT_TRUE(says(run(LoadFault::overwrites), {"writes 4 bytes", pending}));
  EXPECT_TRUE(
      says(run(LoadFault::expects_too_much),
           {"no thread can go on: 64 threads",
            "wait for a phase of an mbarrier at tests/",
            "phase 0 of the mbarrier at byte 0 of 8 of full lacks 0 arrivals and 16 bytes"}));
  EXPECT_TRUE(says(run(LoadFault::expects_too_little),
                   {"no thread can go on", "has got 16 bytes more than it expects"}));
  EXPECT_TRUE(
      says(run(LoadFault::no_init_fence),
           {"to an mbarrier that the async proxy does not see yet", "fence_mbarrier_init"}));
  EXPECT_TRUE(says(run(LoadFault::no_barrier_after_init),
                   {"mbarrier", "thread (0, 0, 0)", "pass a barrier of the block"}));
  EXPECT_TRUE(says(run(LoadFault::not_initialised), {"an mbarrier that nobody has initialised"}));
  EXPECT_TRUE(says(
      run(LoadFault::touches_the_mbarrier),
      {"thread (1, 0, 0)", "reads 8 bytes of shared memory that holds an mbarrier", "of full"}));
  EXPECT_TRUE(says(run(LoadFault::arrives_twice), {"more often than its phase has arrivals left"}));
  EXPECT_TRUE(says(run(LoadFault::misaligned), {"not at a multiple of 128 bytes"}));
  EXPECT_TRUE(says(run(LoadFault::unfenced_write),
                   {"copies to 256 bytes of shared memory by the async proxy, with no "
                    "fence.proxy.async since a thread wrote",
                    "writes it at tests/"}));
  EXPECT_TRUE(says(run(LoadFault::unfenced_read),
                   {"copies to 256 bytes of shared memory by the async proxy, with no "
                    "fence.proxy.async since a thread read",
                    "reads it at tests/"}));
  EXPECT_TRUE(says(run(LoadFault::nobody_waits),
                   {"issued a bulk copy that nobody has waited for when the block ended"}));
  // By the order of threads: the copy meets a read, or a read the copy.
  EXPECT_TRUE(says(run(LoadFault::refills_early), {"of shared memory", "dynamic shared memory"}));
}

// ---- stores

enum class StoreFault {
  none,
  no_fence,
  no_barrier,
  overwrites_early,
  overwrites_with_no_barrier,
  not_committed,
  leaves_early,
  reads_result_early,
  begins_before_the_tensor,
  begins_within_a_chunk,
};

__global__ void store_kernel(const __grid_constant__ TensorMap map,
                             float* tensor,
                             float* out,
                             StoreFault planted) {
  auto* const box = gpu::dynamic_shared_for_tma<float>();
  const int thread = static_cast<int>(threadIdx.x);
  box[thread] = static_cast<float>(1000 + thread);
  if (planted != StoreFault::no_fence) {
    gpu::fence_proxy_async();
  }
  if (planted != StoreFault::no_barrier) {
    gpu::sync_threads();  // the box is written
  }
  if (thread == 0) {
    gpu::tma_store(map,
                   box,
                   planted == StoreFault::begins_within_a_chunk ? 6 : 0,
                   planted == StoreFault::begins_before_the_tensor ? -1 : 1);
    if (planted != StoreFault::not_committed) {
      gpu::tma_commit();
    }
    if (planted != StoreFault::overwrites_early && planted != StoreFault::leaves_early) {
      gpu::tma_wait_read<0>();
    }
  }
  if (planted != StoreFault::overwrites_with_no_barrier) {
    gpu::sync_threads();  // the box has been read
  }
  if (planted != StoreFault::leaves_early) {
    box[thread] = -1;
  }
  if (thread == 0) {
    if (planted != StoreFault::reads_result_early && planted != StoreFault::leaves_early) {
      gpu::tma_wait<0>();
    }
    out[0] = tensor[kRow];
  }
}

TEST(StoreFaults, AreReported) {
  const DeviceArray<float> tensor(2 * kRow, 5.0F);
  const DeviceArray<float> out(1, -1.0F);
  const TensorMap map = make_tensor_map({.data = tensor.data(),
                                         .dtype = DType::f32,
                                         .dims = {kRow, 2},
                                         .stride_bytes = {kRowBytes},
                                         .box = {kRow, 1}});
  const auto run = [&](StoreFault planted) {
    return fault_of(
        store_kernel, one_block(kRow, kRowBytes), map, tensor.data(), out.data(), planted);
  };
  // The store is made no earlier than its wait: who reads its result before sees what was there.
  EXPECT_EQ(run(StoreFault::reads_result_early), "");
  EXPECT_EQ(out.values()[0], 1000.0F);  // by the orders that follow; the first saw 5
  EXPECT_EQ(run(StoreFault::none), "");
  EXPECT_EQ(out.values()[0], 1000.0F);
  EXPECT_EQ(tensor.values()[kRow + 63], 1063.0F);
  EXPECT_EQ(tensor.values()[kRow - 1], 5.0F);

  EXPECT_TRUE(says(run(StoreFault::no_fence),
                   {"reads 256 bytes of shared memory by the async proxy, with no "
                    "fence.proxy.async since a thread wrote",
                    "byte 0 of 256 of dynamic shared",
                    "writes it at tests/",
                    "fence_proxy_async"}));
  EXPECT_FALSE(run(StoreFault::no_barrier).empty());
  EXPECT_TRUE(
      says(run(StoreFault::overwrites_early),
           {"writes 4 bytes of shared memory that a wgmma or a bulk store under way reads"}));
  EXPECT_FALSE(run(StoreFault::overwrites_with_no_barrier).empty());
  EXPECT_FALSE(run(StoreFault::not_committed).empty());
  EXPECT_TRUE(says(run(StoreFault::leaves_early),
                   {"issued a bulk store that it has not waited for when it left the kernel"}));
  EXPECT_TRUE(says(run(StoreFault::begins_before_the_tensor),
                   {"writes a box that begins before the tensor, at a negative coordinate"}));
  EXPECT_TRUE(says(run(StoreFault::begins_within_a_chunk),
                   {"a box whose innermost coordinate is not at whole 16 bytes of its row"}));
}

// ---- bulk copies without a map, elections, fragments

enum class BulkFault {
  none,
  odd_size,
  odd_address,
  reads_early,
  other_lane_commits,
  adds_to_bf16,
  misaligned_row,
};

__global__ void bulk_kernel(const __grid_constant__ TensorMap map,
                            const float* in,
                            float* out,
                            BulkFault planted) {
  auto* const box = gpu::dynamic_shared_for_tma<float>();
  __shared__ gpu::Mbarrier full;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    gpu::mbarrier_init(&full, 1);
    gpu::fence_mbarrier_init();
    gpu::mbarrier_arrive_expect(&full, kRowBytes);
    gpu::bulk_load(box + (planted == BulkFault::odd_address ? 1 : 0),
                   in,
                   planted == BulkFault::odd_size ? kRowBytes - 4 : kRowBytes,
                   &full);
    if (planted == BulkFault::reads_early) {
      out[0] = box[0];
    }
  }
  gpu::sync_threads();  // the mbarrier is there
  gpu::mbarrier_wait(&full, 0);
  std::uint32_t fragment[4] = {1, 2, 3, 4};
  if (thread < 32) {
    const int skipped = planted == BulkFault::misaligned_row ? 2 : 0;
    gpu::store_matrix_x4(box + thread * 4 + skipped, fragment);
  }
  gpu::fence_proxy_async();
  gpu::sync_threads();  // the box is overwritten
  if (thread < 32) {
    const bool elected = gpu::elect_one();
    if (elected && planted == BulkFault::adds_to_bf16) {
      gpu::tma_reduce_add(map, box, 0);
    } else if (elected) {
      gpu::bulk_store(out, box, kRowBytes);
    }
    if (planted == BulkFault::other_lane_commits ? thread == 0 : elected) {
      gpu::tma_commit();
      gpu::tma_wait<0>();
    }
  }
}

TEST(BulkFaults, AreReported) {
  const DeviceArray<float> in(kRow, 3.0F);
  const DeviceArray<float> out(kRow, -1.0F);
  const DeviceArray<std::uint16_t> narrow(kRow, 0);
  const TensorMap map = make_tensor_map({.data = narrow.data(),
                                         .dtype = DType::bf16,
                                         .dims = {kRow},
                                         .stride_bytes = {},
                                         .box = {kRow}});
  const auto run = [&](BulkFault planted) {
    return fault_of(bulk_kernel, one_block(kRow, 1024), map, in.data(), out.data(), planted);
  };
  EXPECT_EQ(run(BulkFault::none), "");
  const std::string whole =
      "a bulk copy that is not of whole 16 bytes, from 16-byte aligned global";
  EXPECT_TRUE(says(run(BulkFault::odd_size), {whole}));
  EXPECT_TRUE(says(run(BulkFault::odd_address), {whole}));
  EXPECT_TRUE(says(run(BulkFault::reads_early),
                   {"of shared memory into which an asynchronous copy is under way"}));
  EXPECT_TRUE(says(run(BulkFault::adds_to_bf16), {"adds to a tensor that is not of f32"}));
  EXPECT_TRUE(says(run(BulkFault::misaligned_row),
                   {"gives stmatrix a row that is not in shared memory, or not at a multiple"}));
  // Which lane is elected is the hardware's choice: lane 0 is not it in every order.
  EXPECT_TRUE(says(run(BulkFault::other_lane_commits),
                   {"issued a bulk store that it has not waited for when it left the kernel"}));
}

__global__ void stale_kernel(const __grid_constant__ TensorMap map, float* tensor, float* out) {
  auto* const box = gpu::dynamic_shared_for_tma<float>();
  box[threadIdx.x] = 7;
  gpu::fence_proxy_async();
  gpu::sync_threads();  // the box is written
  if (threadIdx.x == 0) {
    gpu::tma_store(map, box, 0);
    gpu::tma_commit();
    gpu::tma_wait_read<0>();
    out[0] = tensor[0];
    gpu::tma_wait<0>();
    out[1] = tensor[0];
  }
}

TEST(StoreFaults, AResultIsThereAfterItsWaitAndNotBefore) {
  const DeviceArray<float> tensor(kRow, 5.0F);
  const DeviceArray<float> out(2, -1.0F);
  launch(stale_kernel,
         one_block(kRow, kRowBytes),
         make_tensor_map({.data = tensor.data(),
                          .dtype = DType::f32,
                          .dims = {kRow},
                          .stride_bytes = {},
                          .box = {kRow}}),
         tensor.data(),
         out.data());
  EXPECT_EQ(out.values(), (std::vector<float>{5, 7}));
}

// ---- wgmma

enum class WgmmaFault {
  none,
  no_proxy_fence,
  overwrites_operand,
  overwrites_after_own_wait,
  writes_accumulators,
  reads_accumulators,
  no_wgmma_fence,
  no_second_wgmma_fence,
  leaves_early,
  other_descriptor,
  one_warp_stays_away,
  outside,
  other_registers,
  writes_fragments,
};

// d = a b twice over, with a and b [64, 16] of ones.
__global__ void wgmma_kernel(float* out, WgmmaFault planted) {
  constexpr int kTile = 64 * 16;  // bf16
  auto* const tiles = gpu::dynamic_shared_for_tma<std::uint16_t>();
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < 2 * kTile; i += 128) {
    tiles[i] = 0x3F80;  // 1
  }
  if (planted != WgmmaFault::no_proxy_fence) {
    gpu::fence_proxy_async();
  }
  gpu::sync_threads();  // the tiles are written
  if (planted == WgmmaFault::one_warp_stays_away && thread >= 96) {
    return;
  }
  if (planted == WgmmaFault::other_registers) {
    if (thread < 32) {
      gpu::decrease_max_registers<232>();
    } else {
      gpu::decrease_max_registers<240>();
    }
  }
  const auto descriptor = [&](const std::uint16_t* tile) {
    return gpu::wgmma_descriptor(tile, Swizzle::bytes_32, 16, 256);
  };
  float d[32];
  for (float& value : d) {
    value = 0;
  }
  if (planted != WgmmaFault::no_wgmma_fence) {
    gpu::wgmma_fence(d);
  }
  const std::uint64_t a = descriptor(tiles);
  const std::uint64_t b = descriptor(tiles + kTile);
  for (int pass = 0; pass < 2; ++pass) {
    const bool moved = planted == WgmmaFault::other_descriptor && thread >= 32;
    gpu::wgmma<Major::k, Major::k>(d,
                                   a,
                                   planted == WgmmaFault::outside ? advance(b, 1024)
                                   : moved                        ? a
                                                                  : b,
                                   true);
  }
  gpu::wgmma_commit();
  if (planted == WgmmaFault::leaves_early) {
    return;
  }
  if (planted == WgmmaFault::overwrites_operand && thread == 40) {
    tiles[kTile] = 0;
  }
  if (planted == WgmmaFault::writes_accumulators) {
    d[0] = 1;
  }
  const float early = planted == WgmmaFault::reads_accumulators ? d[5] : 0;
  gpu::wgmma_wait<0>(d);
  if (planted == WgmmaFault::writes_fragments) {
    std::uint32_t fragment[1][4] = {{0x3F803F80U, 0x3F803F80U, 0x3F803F80U, 0x3F803F80U}};
    gpu::wgmma_fence(d, fragment);
    gpu::wgmma<Major::k>(d, fragment[0], b, true);
    gpu::wgmma_commit();
    fragment[0][2] = 0;
    gpu::wgmma_wait<0>(d, fragment);
  }
  if (planted == WgmmaFault::overwrites_after_own_wait && thread == 0) {
    tiles[kTile] = 0;
  }
  if (planted == WgmmaFault::no_second_wgmma_fence) {
    d[3] = 1;
    gpu::wgmma<Major::k, Major::k>(d, a, b, true);
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>(d);
  }
  out[thread] = d[5] + early;
}

TEST(WgmmaFaults, AreReported) {
  const DeviceArray<float> out(128, -1.0F);
  const auto run = [&](WgmmaFault planted) {
    return fault_of(wgmma_kernel, one_block(128, 4096), out.data(), planted);
  };
  EXPECT_EQ(run(WgmmaFault::none), "");
  EXPECT_EQ(out.values(), std::vector<float>(128, 32.0F));
  EXPECT_EQ(run(WgmmaFault::reads_accumulators), "");
  for (const float value : out.values()) {
    EXPECT_NE(value, value);  // NaN
  }

  EXPECT_TRUE(says(run(WgmmaFault::no_proxy_fence),
                   {"reads 16 bytes of shared memory by the async proxy, with no fence.proxy.async",
                    "writes it at tests/",
                    "fence_proxy_async"}));
  EXPECT_TRUE(says(run(WgmmaFault::overwrites_operand),
                   {"thread (40, 0, 0)",
                    "writes 2 bytes of shared memory that a wgmma or a bulk "
                    "store under way reads",
                    "byte 2048 of 4096"}));
  EXPECT_FALSE(run(WgmmaFault::overwrites_after_own_wait).empty());
  EXPECT_TRUE(says(run(WgmmaFault::writes_accumulators),
                   {"issued a wgmma whose accumulators were written before its wait"}));
  const std::string no_fence =
      "starts a wgmma with no wgmma.fence since its registers were written";
  EXPECT_TRUE(says(run(WgmmaFault::no_wgmma_fence), {no_fence}));
  EXPECT_TRUE(says(run(WgmmaFault::no_second_wgmma_fence), {no_fence}));
  EXPECT_TRUE(says(run(WgmmaFault::leaves_early),
                   {"issued a wgmma that it has not waited for when it left the kernel"}));
  EXPECT_TRUE(says(run(WgmmaFault::other_descriptor),
                   {"other operands of it, than another of the four warps did"}));
  EXPECT_TRUE(says(run(WgmmaFault::one_warp_stays_away),
                   {"no thread can go on",
                    "96 threads",
                    "wait for the other warps of its warpgroup",
                    "32 threads, thread (96, 0, 0) the first, left the kernel"}));
  EXPECT_TRUE(says(run(WgmmaFault::outside), {"outside of the block's shared memory"}));
  EXPECT_TRUE(says(run(WgmmaFault::other_registers),
                   {"executes another instruction of the warpgroup, or other operands"}));
  EXPECT_TRUE(says(run(WgmmaFault::writes_fragments),
                   {"has written a fragment of a wgmma before its wait", "is at tests/"}));
}

// ---- setmaxnreg

enum class RegisterFault {
  none,
  more_than_the_block_has,
  gives_up_more_than_it_has,
  asks_for_fewer
};

// 384 threads begin with 168 registers each.
__global__ void __launch_bounds__(384, 1) registers_kernel(int* out, RegisterFault planted) {
  if (threadIdx.x < 128) {
    if (planted == RegisterFault::more_than_the_block_has) {
      gpu::decrease_max_registers<32>();
    } else if (planted == RegisterFault::gives_up_more_than_it_has) {
      gpu::decrease_max_registers<176>();
    } else {
      gpu::decrease_max_registers<24>();
    }
  } else if (planted == RegisterFault::asks_for_fewer) {
    gpu::increase_max_registers<160>();
  } else {
    gpu::increase_max_registers<240>();
  }
  out[threadIdx.x] = 1;
}

TEST(RegisterFaults, AreReported) {
  const DeviceArray<int> out(384, -1);
  const auto run = [&](RegisterFault planted) {
    return fault_of(registers_kernel, one_block(384, 0), out.data(), planted);
  };
  EXPECT_EQ(run(RegisterFault::none), "");
  EXPECT_EQ(out.values(), std::vector<int>(384, 1));
  // 32 and twice 240 are 512, of which there are 504: seven of eight warps get theirs.
  EXPECT_TRUE(says(
      run(RegisterFault::more_than_the_block_has),
      {"no thread can go on", "32 threads", "wait for registers that another warpgroup gives up"}));
  EXPECT_TRUE(says(run(RegisterFault::gives_up_more_than_it_has),
                   {"gives up registers and names more than it has"}));
  EXPECT_TRUE(
      says(run(RegisterFault::asks_for_fewer), {"asks for registers and names fewer than it has"}));
}

}  // namespace
}  // namespace memphis::kernels
