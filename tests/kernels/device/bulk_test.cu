// SPDX-License-Identifier: Apache-2.0
//
// cp.async.bulk and cp.reduce.async.bulk, plain and of tensors: which bytes come where, and what is
// added to what. Small integers, so that sums agree bit for bit, but where their order matters.
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_hopper_bulk.h>
#include <gpu_hopper_tma.h>
#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "tests/kernels/device/device_array.h"

namespace memphis::kernels {
namespace {

using memphis::test::DeviceArray;

class Bulk : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = memphis::test::no_device_reason(90);
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};

Launch blocks(std::int64_t count, std::size_t shared_bytes) {
  return {.grid = {.x = count},
          .block = {.x = 64},
          .shared_bytes = shared_bytes,
          .stream = {.device = Device::cuda, .handle = nullptr}};
}

std::vector<float> counted(std::size_t count, float first) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = first + static_cast<float>(i);
  }
  return values;
}

enum class What { store, add };

// `bytes` from `in` to 32 bytes into shared memory, and from there to `out`.
__global__ void copy_kernel(const float* in, float* out, int bytes, What what) {
  constexpr int kSkipped = 8;  // floats
  auto* const box = gpu::dynamic_shared<float>();
  __shared__ gpu::Mbarrier full;
  if (threadIdx.x == 0) {
    gpu::mbarrier_init(&full, 1);
    gpu::fence_mbarrier_init();
    gpu::mbarrier_arrive_expect(&full, bytes);
    gpu::bulk_load(box + kSkipped, in, bytes, &full);
  }
  gpu::sync_threads();  // the mbarrier is there
  gpu::mbarrier_wait(&full, 0);
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += static_cast<int>(blockDim.x)) {
    box[kSkipped + i] *= 2;
  }
  gpu::fence_proxy_async();
  gpu::sync_threads();  // the box is doubled
  if (threadIdx.x == 0) {
    if (what == What::store) {
      gpu::bulk_store(out, box + kSkipped, bytes);
    } else {
      gpu::bulk_reduce_add(out, box + kSkipped, bytes);
    }
    gpu::tma_commit();
    gpu::tma_wait<0>();
  }
}

TEST_F(Bulk, BytesGoThroughSharedMemoryAndNoFurther) {
  constexpr std::size_t kCount = 40;
  const DeviceArray<float> in(counted(kCount, 1));
  for (const What what : {What::store, What::add}) {
    for (const std::size_t count : {4U, 12U, 32U}) {
      const DeviceArray<float> out(counted(kCount, 100));
      // From and to the fourth float on: 16 bytes, and no more, is what the addresses align to.
      launch(copy_kernel,
             blocks(1, 32 + 4 * count),
             in.data() + 4,
             out.data() + 4,
             static_cast<int>(4 * count),
             what);
      const std::vector<float> values = out.values();
      for (std::size_t i = 0; i < kCount; ++i) {
        const bool inside = i >= 4 && i < 4 + count;
        const float before = 100 + static_cast<float>(i);
        const float doubled = 2 * (1 + static_cast<float>(i));
        ASSERT_EQ(values[i],
                  !inside               ? before
                  : what == What::store ? doubled
                                        : before + doubled)
            << "float " << i << " of " << count;
      }
    }
  }
}

// All blocks add to the same floats, plain or by a map: none of the additions is lost.
__global__ void add_kernel(const __grid_constant__ TensorMap map, float* out, What what) {
  auto* const box = gpu::dynamic_shared_for_tma<float>();
  box[threadIdx.x] = static_cast<float>(threadIdx.x);
  gpu::fence_proxy_async();
  gpu::sync_threads();  // the box is written
  if (threadIdx.x == 0) {
    if (what == What::store) {
      gpu::bulk_reduce_add(out, box, 256);
    } else {
      gpu::tma_prefetch_descriptor(map);
      gpu::tma_reduce_add(map, box, 0);
    }
    gpu::tma_commit();
    gpu::tma_wait<0>();
  }
}

TEST_F(Bulk, NoAdditionIsLost) {
  constexpr int kBlocks = 300;
  for (const What what : {What::store, What::add}) {
    const DeviceArray<float> out(64, 1.0F);
    const TensorMap map = make_tensor_map(
        {.data = out.data(), .dtype = DType::f32, .dims = {64}, .stride_bytes = {}, .box = {64}});
    launch(add_kernel, blocks(kBlocks, 256), map, out.data(), what);
    const std::vector<float> values = out.values();
    for (std::size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(values[i], static_cast<float>(1 + kBlocks * static_cast<int>(i))) << i;
    }
  }
}

__global__ void add_value_kernel(float* out, float value) {
  auto* const box = gpu::dynamic_shared_for_tma<float>();
  box[threadIdx.x] = value;
  gpu::fence_proxy_async();
  gpu::sync_threads();  // the box is written
  if (threadIdx.x == 0) {
    gpu::bulk_reduce_add(out, box, 256);
    gpu::tma_commit();
    gpu::tma_wait<0>();
  }
}

// Before the addition, of which the sum would be normal, and after it.
TEST_F(Bulk, SubnormalNumbersAreZerosInAnAddition) {
  constexpr float kLeastNormal = std::numeric_limits<float>::min();
  for (const auto& [before, value, sum] :
       {std::array{kLeastNormal / 2, kLeastNormal / 2, 0.0F},
        std::array{kLeastNormal / 2, 3 * kLeastNormal, 3 * kLeastNormal},
        std::array{kLeastNormal * 1.5F, -kLeastNormal, 0.0F}}) {
    const DeviceArray<float> out(64, before);
    launch(add_value_kernel, blocks(1, 256), out.data(), value);
    EXPECT_EQ(out.values(), std::vector<float>(64, sum)) << before << " + " << value;
  }
}

// Blocks add in the order of their tickets: the sums are rounded, and another order shows.
__global__ void add_in_turns_kernel(float* out, int* ticket, int* turn) {
  auto* const box = gpu::dynamic_shared_for_tma<float>();
  __shared__ int own;
  if (threadIdx.x == 0) {
    own = gpu::fetch_add(ticket, 1);
  }
  gpu::sync_threads();  // the ticket is taken
  box[threadIdx.x] = 1.0F / static_cast<float>(own + 1 + static_cast<int>(threadIdx.x));
  gpu::fence_proxy_async();
  gpu::sync_threads();  // the box is written
  if (threadIdx.x == 0) {
    gpu::wait_at_least(turn, own);
    gpu::fence_proxy_async_global();
    gpu::bulk_reduce_add(out, box, 256);
    gpu::tma_commit();
    gpu::tma_wait<0>();
    gpu::store_release(turn, own + 1);
  }
}

TEST_F(Bulk, BlocksAddInTurns) {
  constexpr int kBlocks = 100;
  const DeviceArray<float> out(64, 0.0F);
  const DeviceArray<int> ticket(1, 0);
  const DeviceArray<int> turn(1, 0);
  launch(add_in_turns_kernel, blocks(kBlocks, 256), out.data(), ticket.data(), turn.data());
  std::vector<float> expected(64, 0.0F);
  for (int block = 0; block < kBlocks; ++block) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      expected[i] += 1.0F / static_cast<float>(block + 1 + static_cast<int>(i));
    }
  }
  EXPECT_EQ(out.values(), expected);
}

struct Corner {
  int at[5];
};

// A box to a corner from which it goes beyond the ends of the tensor.
template <int kDims>
__global__ void add_box_kernel(const __grid_constant__ TensorMap map, Corner corner, int count) {
  auto* const box = gpu::dynamic_shared_for_tma<float>();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    box[i] = static_cast<float>(i + 1);
  }
  gpu::fence_proxy_async();
  gpu::sync_threads();  // the box is written
  if (threadIdx.x == 0) {
    const int* const c = corner.at;
    if constexpr (kDims == 1) {
      gpu::tma_reduce_add(map, box, c[0]);
    } else if constexpr (kDims == 2) {
      gpu::tma_reduce_add(map, box, c[0], c[1]);
    } else if constexpr (kDims == 3) {
      gpu::tma_reduce_add(map, box, c[0], c[1], c[2]);
    } else if constexpr (kDims == 4) {
      gpu::tma_reduce_add(map, box, c[0], c[1], c[2], c[3]);
    } else {
      gpu::tma_reduce_add(map, box, c[0], c[1], c[2], c[3], c[4]);
    }
    gpu::tma_commit();
    gpu::tma_wait<0>();
  }
}

TEST_F(Bulk, ABoxIsAddedInOneToFiveDims) {
  constexpr std::array<int, 5> kDims = {12, 5, 4, 3, 2};
  constexpr std::array<int, 5> kBox = {8, 2, 3, 2, 2};
  // Beyond the end of the innermost dim, and of the third.
  constexpr Corner kCorner = {{8, 2, 2, 1, 1}};
  constexpr std::array kKernels = {add_box_kernel<1>,
                                   add_box_kernel<2>,
                                   add_box_kernel<3>,
                                   add_box_kernel<4>,
                                   add_box_kernel<5>};
  for (std::size_t num_dims = 1; num_dims <= 5; ++num_dims) {
    SCOPED_TRACE(num_dims);
    TiledTensor tiled{.data = nullptr,
                      .dtype = DType::f32,
                      .dims = {},
                      .stride_bytes = {},
                      .box = {},
                      .swizzle = Swizzle::none};
    std::size_t count = 1;
    for (std::size_t dim = 0; dim < num_dims; ++dim) {
      count *= static_cast<std::size_t>(kDims[dim]);
      tiled.dims.push_back(kDims[dim]);
      tiled.box.push_back(kBox[dim]);
      if (dim + 1 < num_dims) {
        tiled.stride_bytes.push_back(static_cast<std::int64_t>(count * 4));
      }
    }
    const DeviceArray<float> tensor(counted(count, 1000));
    tiled.data = tensor.data();
    const std::size_t box_count = box_bytes(tiled) / 4;
    launch(kKernels[num_dims - 1],
           blocks(1, box_bytes(tiled)),
           make_tensor_map(tiled),
           kCorner,
           static_cast<int>(box_count));

    std::vector<float> expected = counted(count, 1000);
    for (std::size_t i = 0; i < box_count; ++i) {
      std::size_t rest = i;
      std::size_t stride = 1;
      std::size_t index = 0;
      bool inside = true;
      for (std::size_t dim = 0; dim < num_dims; ++dim) {
        const auto side = static_cast<std::size_t>(kBox[dim]);
        const int at = static_cast<int>(rest % side) + kCorner.at[dim];
        inside = inside && at >= 0 && at < kDims[dim];
        index += static_cast<std::size_t>(at) * stride;
        rest /= side;
        stride *= static_cast<std::size_t>(kDims[dim]);
      }
      if (inside) {
        expected[index] += static_cast<float>(i + 1);
      }
    }
    EXPECT_EQ(tensor.values(), expected);
  }
}

}  // namespace
}  // namespace memphis::kernels
