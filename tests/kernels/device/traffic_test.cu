// SPDX-License-Identifier: Apache-2.0
//
// What accesses ask of the memory system: patterns whose sectors and passes over the banks are known
// from the width of both.
#include "kernels/device/simt/traffic.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_hopper_bulk.h>
#include <gpu_hopper_tma.h>
#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_mma.h>
#include <gpu_warp.h>

#include "kernels/device/simt/options.h"
#include "tests/kernels/device/device_array.h"

namespace memphis::kernels {
namespace {

constexpr int kWarp = 32;

// Lane i of each warp reads the float at `offset + i * stride`.
__global__ void strided_kernel(float* data, int offset, int stride) {
  const auto lane = static_cast<int>(threadIdx.x) % kWarp;
  if (data[offset + lane * stride] < 0.0F) {
    data[0] = 1.0F;
  }
}

// Eight floats of each lane, as two vectors one behind the other, or a warp's vectors apart.
template <bool kApart>
__global__ void two_vectors_kernel(float* data) {
  const auto lane = static_cast<int>(threadIdx.x);
  float sum = 0.0F;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int vector = kApart ? i * kWarp + lane : lane * 2 + i;
    const gpu::Vector<float> four = gpu::load_vector(data + vector * 4);
    sum += four.values[0] + four.values[3];
  }
  if (sum < 0.0F) {
    data[0] = 1.0F;
  }
}

// A column of a square in shared memory whose rows are `row` floats.
__global__ void column_kernel(float* data, int row) {
  auto* const tile = gpu::dynamic_shared<float>();
  const auto lane = static_cast<int>(threadIdx.x);
  tile[lane * row] = 1.0F;
  gpu::sync_threads();
  if (tile[lane * row] < 0.0F) {
    data[0] = 1.0F;
  }
}

__global__ void broadcast_kernel(float* data) {
  __shared__ float tile[kWarp];
  tile[threadIdx.x] = 1.0F;
  gpu::sync_threads();
  if (tile[5] < 0.0F) {
    data[0] = 1.0F;
  }
}

// Each lane adds to one of `num_counters`.
__global__ void counters_kernel(int num_counters) {
  __shared__ int counters[kWarp];
  counters[threadIdx.x] = 0;
  gpu::sync_warp();
  gpu::atomic_add(&counters[static_cast<int>(threadIdx.x) % num_counters], 1);
}

// ldmatrix of 32 rows of 128 bytes, plain or with chunks exchanged as TMA's widest swizzle has them.
template <bool kSwizzled>
__global__ void matrix_kernel(float* data) {
  auto* const tile = gpu::dynamic_shared<std::uint32_t>();
  const auto lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < kWarp; ++i) {
    tile[i * kWarp + lane] = 0;
  }
  gpu::sync_warp();
  const int chunk = kSwizzled ? lane % 8 : 0;
  std::uint32_t fragment[4];
  gpu::load_matrix_x4(fragment, tile + lane * kWarp + chunk * 4);
  if (fragment[0] != 0) {
    data[0] = 1.0F;
  }
}

// Half of the warp is in a loop of its own before all read one element.
__global__ void divergent_kernel(float* data) {
  const auto lane = static_cast<int>(threadIdx.x);
  float sum = 0.0F;
  const int rounds = lane < kWarp / 2 ? 2 : 1;
  for (int i = 0; i < rounds + 1; ++i) {
    if (i == rounds) {
      gpu::sync_warp();
    }
    sum += data[i == rounds ? 0 : 1024 + i * 1024 + lane];
  }
  if (sum < 0.0F) {
    data[0] = 1.0F;
  }
}

__global__ void copy_async_kernel(const float* data) {
  auto* const tile = gpu::dynamic_shared<float>();
  const auto lane = static_cast<int>(threadIdx.x);
  gpu::copy_async_16(tile + lane * 4, data + lane * 4, true);
  gpu::copy_async_commit();
  gpu::copy_async_wait<0>();
}

// `bytes` of contiguous memory by one thread.
__global__ void bulk_kernel(float* data, int bytes) {
  auto* const box = gpu::dynamic_shared_for_tma<float>();
  if (threadIdx.x == 0) {
    for (int i = 0; i < 256; ++i) {
      box[i] = 1.0F;
    }
    gpu::fence_proxy_async();
    gpu::bulk_store(data, box, bytes);
    gpu::tma_commit();
    gpu::tma_wait<0>();
  }
}

class TrafficOf : public testing::Test {
 protected:
  TrafficOf() {
    simt::options().count_traffic = true;
    simt::forget_traffic();
  }
  ~TrafficOf() override {
    simt::options() = before_;
    simt::forget_traffic();
  }

  template <class... Arguments>
  void run(void (*kernel)(Arguments...), Arguments... arguments) {
    launch(kernel,
           {.grid = {.x = 1}, .block = {.x = kWarp}, .shared_bytes = kSharedBytes, .stream = {}},
           arguments...);
  }
  // What was counted on one path for one kind of access.
  static simt::Traffic counted(simt::Path path, simt::Access access) {
    simt::Traffic sum;
    for (const simt::LineTraffic& line : simt::traffic()) {
      if (line.path == path && line.access == access) {
        sum += line.traffic;
      }
    }
    return sum;
  }
  static simt::Traffic global_reads() { return counted(simt::Path::global, simt::Access::read); }
  static simt::Traffic shared_reads() { return counted(simt::Path::shared, simt::Access::read); }

  static constexpr std::size_t kSharedBytes = 33 * kWarp * sizeof(float) + 1024;
  test::DeviceArray<float> data_{std::size_t{1} << 14U, 1.0F};

 private:
  simt::Options before_ = simt::options();
};

void expect(const simt::Traffic& counted, const simt::Traffic& wanted) {
  EXPECT_EQ(counted.instructions, wanted.instructions);
  EXPECT_EQ(counted.bytes, wanted.bytes);
  EXPECT_EQ(counted.cost, wanted.cost);
  EXPECT_EQ(counted.least, wanted.least);
}

TEST_F(TrafficOf, NeighboursIsTheLeast) {
  run(strided_kernel, data_.data(), 0, 1);
  expect(global_reads(), {.instructions = 1, .bytes = 128, .cost = 4, .least = 4});
}

TEST_F(TrafficOf, WhatIsNotAtABoundaryIsOneSectorMore) {
  run(strided_kernel, data_.data(), 1, 1);
  expect(global_reads(), {.instructions = 1, .bytes = 128, .cost = 5, .least = 4});
}

TEST_F(TrafficOf, EverySecondElementIsHalfOfEachSector) {
  run(strided_kernel, data_.data(), 0, 2);
  expect(global_reads(), {.instructions = 1, .bytes = 128, .cost = 8, .least = 4});
}

TEST_F(TrafficOf, RowsOfASectorOrMoreIsOneForEachLane) {
  run(strided_kernel, data_.data(), 0, 100);
  expect(global_reads(), {.instructions = 1, .bytes = 128, .cost = 32, .least = 4});
}

TEST_F(TrafficOf, OneElementForAllIsOneSector) {
  run(strided_kernel, data_.data(), 3, 0);
  expect(global_reads(), {.instructions = 1, .bytes = 4, .cost = 1, .least = 1});
}

TEST_F(TrafficOf, VectorsOneBehindTheOtherTouchesEachSectorTwice) {
  run(two_vectors_kernel<false>, data_.data());
  expect(global_reads(), {.instructions = 2, .bytes = 1024, .cost = 64, .least = 32});
  simt::forget_traffic();
  run(two_vectors_kernel<true>, data_.data());
  expect(global_reads(), {.instructions = 2, .bytes = 1024, .cost = 32, .least = 32});
}

TEST_F(TrafficOf, AColumnMeetsEachBankAsTheRowsSay) {
  const struct {
    int row;
    std::int64_t passes;
  } cases[] = {{.row = 32, .passes = 32},
               {.row = 33, .passes = 1},
               {.row = 16, .passes = 16},
               {.row = 2, .passes = 2},
               {.row = 1, .passes = 1}};
  for (const auto& [row, passes] : cases) {
    simt::forget_traffic();
    run(column_kernel, data_.data(), row);
    const simt::Traffic wanted = {.instructions = 1, .bytes = 128, .cost = passes, .least = 1};
    expect(shared_reads(), wanted);
    expect(counted(simt::Path::shared, simt::Access::write), wanted);
  }
}

TEST_F(TrafficOf, OneWordForAllIsOnePass) {
  run(broadcast_kernel, data_.data());
  expect(shared_reads(), {.instructions = 1, .bytes = 4, .cost = 1, .least = 1});
}

TEST_F(TrafficOf, AddingToOneWordIsAPassForEachLane) {
  run(counters_kernel, 1);
  expect(counted(simt::Path::shared, simt::Access::atomic),
         {.instructions = 1, .bytes = 4, .cost = 32, .least = 1});
  simt::forget_traffic();
  run(counters_kernel, 8);
  expect(counted(simt::Path::shared, simt::Access::atomic),
         {.instructions = 1, .bytes = 32, .cost = 4, .least = 1});
}

// Eight rows of 16 bytes a pass.
TEST_F(TrafficOf, MatricesOfAlignedRowsMeetOneGroupOfBanksUnlessSwizzled) {
  run(matrix_kernel<false>, data_.data());
  expect(shared_reads(), {.instructions = 1, .bytes = 512, .cost = 32, .least = 4});
  simt::forget_traffic();
  run(matrix_kernel<true>, data_.data());
  expect(shared_reads(), {.instructions = 1, .bytes = 512, .cost = 4, .least = 4});
}

// The second round is of half of the lanes; what all read behind it is one instruction again.
TEST_F(TrafficOf, LanesThatAreApartIsCountedTogetherAgainBehindABarrier) {
  run(divergent_kernel, data_.data());
  expect(global_reads(), {.instructions = 3, .bytes = 128 + 64 + 4, .cost = 7, .least = 7});
}

TEST_F(TrafficOf, AnAsynchronousCopyIsReadAndWrittenOnce) {
  run(copy_async_kernel, static_cast<const float*>(data_.data()));
  expect(global_reads(), {.instructions = 1, .bytes = 512, .cost = 16, .least = 16});
  expect(counted(simt::Path::shared, simt::Access::copy),
         {.instructions = 1, .bytes = 512, .cost = 4, .least = 4});
}

TEST_F(TrafficOf, ABulkCopyIsItsBytes) {
  run(bulk_kernel, data_.data(), 1024);
  const simt::Traffic stored = counted(simt::Path::bulk, simt::Access::async_write);
  EXPECT_EQ(stored.bytes, 1024);
  EXPECT_EQ(stored.cost, 32);
  EXPECT_EQ(stored.least, 32);
}

TEST_F(TrafficOf, ALineIsNamedAndKernelsApart) {
  run(strided_kernel, data_.data(), 0, 2);
  run(two_vectors_kernel<true>, data_.data());
  const std::vector<simt::LineTraffic> lines = simt::traffic();
  ASSERT_EQ(lines.size(), 2U) << describe(lines);
  EXPECT_EQ(lines[0].kernel, "strided_kernel");
  EXPECT_NE(lines[0].place.find("traffic_test.cu:"), std::string::npos) << lines[0].place;
  EXPECT_EQ(lines[1].kernel, "two_vectors_kernel<true>");
  const std::string text = describe(lines);
  EXPECT_NE(text.find("8 sectors for 128 bytes, 4 would do"), std::string::npos) << text;
}

TEST_F(TrafficOf, NothingIsCountedWhereNobodyAsks) {
  simt::options().count_traffic = false;
  run(strided_kernel, data_.data(), 0, 1);
  EXPECT_TRUE(simt::traffic().empty());
}

// Blocks and lanes in another order ask for the same.
TEST_F(TrafficOf, TheOrderOfLanesIsOfNoConsequence) {
  run(matrix_kernel<false>, data_.data());
  run(divergent_kernel, data_.data());
  const std::string ascending = describe(simt::traffic());
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    simt::options().seed = seed;
    simt::forget_traffic();
    run(matrix_kernel<false>, data_.data());
    run(divergent_kernel, data_.data());
    EXPECT_EQ(describe(simt::traffic()), ascending) << "seed " << seed;
  }
}

}  // namespace
}  // namespace memphis::kernels
