// SPDX-License-Identifier: Apache-2.0
//
// Instructions of a warp against the PTX ISA's tables: shuffles, votes and counts, ldmatrix,
// mma.m16n8k16, cp.async on sm_80 and newer, stmatrix and elect.sync on sm_90. Small integers, so
// that results agree bit for bit.
#include <algorithm>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_mma.h>
#include <gpu_warp.h>

#include "csrc/core/dtype.h"
#include "tests/kernels/device/device_array.h"

namespace memphis::kernels {
namespace {

using test::DeviceArray;

class WarpInstructions : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = test::no_device_reason(80);
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};

Launch one_warp(std::size_t shared_bytes = 0) {
  return {.grid = {},
          .block = {.x = 32},
          .shared_bytes = shared_bytes,
          .stream = {.device = Device::cuda, .handle = nullptr}};
}

// ---- shfl, vote, match

constexpr int kNumVotes = 7;

__global__ void votes_kernel(unsigned* out) {
  const int lane = gpu::lane_id();
  int count = 100;
  gpu::count_if(count, lane % 2 == 0);
  gpu::count_if(count, lane < 8);
  const unsigned results[kNumVotes] = {
      static_cast<unsigned>(gpu::shuffle_xor(10 * lane, 5)),
      static_cast<unsigned>(gpu::shuffle_from(10 * lane, (lane * 3) % 32)),
      static_cast<unsigned>(gpu::shuffle_up(10 * lane, 2)),
      gpu::ballot(lane % 3 == 0),
      gpu::match_any(lane / 8 % 2),
      static_cast<unsigned>(gpu::shuffle_xor(1.5 * lane, 1)),  // 8 bytes
      static_cast<unsigned>(count),
  };
  for (int i = 0; i < kNumVotes; ++i) {
    out[lane * kNumVotes + i] = results[i];
  }
}

TEST_F(WarpInstructions, ShufflesVotesAndCounts) {
  const DeviceArray<unsigned> out(32 * kNumVotes, 0);
  launch(votes_kernel, one_warp(), out.data());
  const std::vector<unsigned> values = out.values();
  constexpr int kXor5[32] = {5,  4,  7,  6,  1,  0,  3,  2,  13, 12, 15, 14, 9,  8,  11, 10,
                             21, 20, 23, 22, 17, 16, 19, 18, 29, 28, 31, 30, 25, 24, 27, 26};
  constexpr int kTimes3[32] = {0,  3,  6,  9,  12, 15, 18, 21, 24, 27, 30, 1,  4,  7,  10, 13,
                               16, 19, 22, 25, 28, 31, 2,  5,  8,  11, 14, 17, 20, 23, 26, 29};
  for (int lane = 0; lane < 32; ++lane) {
    SCOPED_TRACE(lane);
    const unsigned* const of = values.data() + lane * kNumVotes;
    EXPECT_EQ(of[0], static_cast<unsigned>(10 * kXor5[lane]));
    EXPECT_EQ(of[1], static_cast<unsigned>(10 * kTimes3[lane]));
    EXPECT_EQ(of[2], static_cast<unsigned>(10 * (lane < 2 ? lane : lane - 2)));
    EXPECT_EQ(of[3], 0x49249249U);  // every third lane, from lane 0
    EXPECT_EQ(of[4], lane / 8 % 2 == 0 ? 0x00FF00FFU : 0xFF00FF00U);
    EXPECT_EQ(of[5], static_cast<unsigned>(1.5 * (lane ^ 1)));
    EXPECT_EQ(of[6], 100U + (lane % 2 == 0 ? 1U : 0U) + (lane < 8 ? 1U : 0U));
  }
}

// ---- ldmatrix

// PTX ISA, "ldmatrix", the figure of the fragment of an 8x8 matrix: which lane receives the
// elements of each row and column.
constexpr int kLaneOf[8][8] = {
    {0, 0, 1, 1, 2, 2, 3, 3},
    {4, 4, 5, 5, 6, 6, 7, 7},
    {8, 8, 9, 9, 10, 10, 11, 11},
    {12, 12, 13, 13, 14, 14, 15, 15},
    {16, 16, 17, 17, 18, 18, 19, 19},
    {20, 20, 21, 21, 22, 22, 23, 23},
    {24, 24, 25, 25, 26, 26, 27, 27},
    {28, 28, 29, 29, 30, 30, 31, 31},
};

// Four matrices, whose rows lie 48 bytes apart: element (row, column) of matrix m is
// 1000 m + 10 row + column.
__global__ void load_matrix_kernel(const std::uint16_t* in, std::uint32_t* out, int transposed) {
  constexpr int kStride = 24;  // elements
  auto* const rows = gpu::dynamic_shared<std::uint16_t>();
  const int lane = gpu::lane_id();
  for (int column = 0; column < 8; ++column) {
    rows[lane * kStride + column] = in[lane * 8 + column];
  }
  gpu::sync_warp();
  std::uint32_t fragment[4];
  if (transposed != 0) {
    gpu::load_matrix_x4_transposed(fragment, rows + lane * kStride);
  } else {
    gpu::load_matrix_x4(fragment, rows + lane * kStride);
  }
  for (int i = 0; i < 4; ++i) {
    out[lane * 4 + i] = fragment[i];
  }
}

TEST_F(WarpInstructions, LoadMatrixGivesTheFiguresFragments) {
  std::vector<std::uint16_t> elements;
  for (int row = 0; row < 32; ++row) {
    for (int column = 0; column < 8; ++column) {
      elements.push_back(static_cast<std::uint16_t>(row / 8 * 1000 + row % 8 * 10 + column));
    }
  }
  const DeviceArray<std::uint16_t> in(elements);
  for (const int transposed : {0, 1}) {
    SCOPED_TRACE(transposed);
    const DeviceArray<std::uint32_t> out(128, 0);
    launch(load_matrix_kernel, one_warp(32 * 48), in.data(), out.data(), transposed);
    const std::vector<std::uint32_t> fragments = out.values();
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int row = 0; row < 8; ++row) {
        for (int column = 0; column < 8; ++column) {
          // Transposed, the figure's rows are the matrix's columns.
          const int figure_row = transposed != 0 ? column : row;
          const int figure_column = transposed != 0 ? row : column;
          const int lane = kLaneOf[figure_row][figure_column];
          const std::uint32_t pair = fragments[static_cast<std::size_t>(lane * 4 + matrix)];
          EXPECT_EQ(figure_column % 2 == 0 ? pair & 0xFFFFU : pair >> 16U,
                    static_cast<std::uint32_t>(matrix * 1000 + row * 10 + column))
              << "matrix " << matrix << ", row " << row << ", column " << column;
        }
      }
    }
  }
}

// ---- stmatrix and elect.sync, of sm_90

class HopperWarpInstructions : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = test::no_device_reason(90);
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};

// The figure's fragments to rows 48 bytes apart, the rest of which stays as it was.
__global__ void store_matrix_kernel(const std::uint32_t* in, std::uint16_t* out, int transposed) {
  constexpr int kStride = 24;  // elements
  auto* const rows = gpu::dynamic_shared<std::uint16_t>();
  const int lane = gpu::lane_id();
  for (int column = 0; column < kStride; ++column) {
    rows[lane * kStride + column] = 0xFFFF;
  }
  gpu::sync_warp();
  std::uint32_t fragment[4];
  for (int i = 0; i < 4; ++i) {
    fragment[i] = in[lane * 4 + i];
  }
  // The rows of a matrix in descending order: it is the address that counts.
  const int row = lane / 8 * 8 + 7 - lane % 8;
  if (transposed != 0) {
    gpu::store_matrix_x4_transposed(rows + row * kStride, fragment);
  } else {
    gpu::store_matrix_x4(rows + row * kStride, fragment);
  }
  gpu::sync_warp();
  for (int column = 0; column < kStride; ++column) {
    out[lane * kStride + column] = rows[row * kStride + column];
  }
}

TEST_F(HopperWarpInstructions, StoreMatrixTakesTheFiguresFragments) {
  for (const int transposed : {0, 1}) {
    SCOPED_TRACE(transposed);
    std::vector<std::uint32_t> fragments(128, 0);
    const auto value = [](int matrix, int row, int column) {
      return static_cast<std::uint32_t>(matrix * 1000 + row * 10 + column);
    };
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int row = 0; row < 8; ++row) {
        for (int column = 0; column < 8; ++column) {
          const int figure_row = transposed != 0 ? column : row;
          const int figure_column = transposed != 0 ? row : column;
          fragments[static_cast<std::size_t>(kLaneOf[figure_row][figure_column] * 4 + matrix)] |=
              value(matrix, row, column) << (figure_column % 2 * 16);
        }
      }
    }
    const DeviceArray<std::uint32_t> in(fragments);
    const DeviceArray<std::uint16_t> out(32 * 24, 0);
    launch(store_matrix_kernel, one_warp(32 * 48), in.data(), out.data(), transposed);
    const std::vector<std::uint16_t> rows = out.values();
    for (int row = 0; row < 32; ++row) {
      for (int column = 0; column < 24; ++column) {
        ASSERT_EQ(rows[static_cast<std::size_t>(row * 24 + column)],
                  column < 8 ? value(row / 8, row % 8, column) : 0xFFFFU)
            << "row " << row << ", column " << column;
      }
    }
  }
}

__global__ void elect_kernel(int* out) {
  const bool first = gpu::elect_one();
  out[gpu::lane_id()] = (first ? 1 : 0) + (gpu::elect_one() ? 10 : 0);
}

TEST_F(HopperWarpInstructions, OneLaneIsElectedAndAlwaysTheSame) {
  const DeviceArray<int> out(32, -1);
  launch(elect_kernel, one_warp(), out.data());
  std::vector<int> values = out.values();
  std::sort(values.begin(), values.end());
  std::vector<int> expected(32, 0);
  expected.back() = 11;
  EXPECT_EQ(values, expected);
}

// ---- mma.m16n8k16

__global__ void mma_kernel(const std::uint32_t* a,
                           const std::uint32_t* b,
                           const float* c,
                           float* out) {
  const int lane = gpu::lane_id();
  float d[4];
  std::uint32_t fragment[4];
  for (int i = 0; i < 4; ++i) {
    d[i] = c[lane * 4 + i];
    fragment[i] = a[lane * 4 + i];
  }
  gpu::mma_m16n8k16(d, fragment, b[lane * 2], b[lane * 2 + 1]);
  for (int i = 0; i < 4; ++i) {
    out[lane * 4 + i] = d[i];
  }
}

// PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": with groupID = lane / 4
// and threadID_in_group = lane % 4, the place of a's eight elements, b's four and d's four.
constexpr int kARow[8] = {0, 0, 8, 8, 0, 0, 8, 8};     // + groupID
constexpr int kAColumn[8] = {0, 1, 0, 1, 8, 9, 8, 9};  // + 2 threadID_in_group
constexpr int kBRow[4] = {0, 1, 8, 9};                 // + 2 threadID_in_group; column groupID
constexpr int kDRow[4] = {0, 0, 8, 8};                 // + groupID
constexpr int kDColumn[4] = {0, 1, 0, 1};              // + 2 threadID_in_group

TEST_F(WarpInstructions, MmaTakesTheTablesFragments) {
  const auto a_at = [](int m, int k) { return static_cast<float>((m * 3 + k * 5) % 17 - 8); };
  const auto b_at = [](int k, int n) { return static_cast<float>((k * 7 + n * 4) % 15 - 7); };
  const auto c_at = [](int m, int n) { return static_cast<float>(100 * m - n); };
  std::vector<std::uint32_t> a(32 * 4);
  std::vector<std::uint32_t> b(32 * 2);
  std::vector<float> c(32 * 4);
  const auto put = [](std::vector<std::uint32_t>& words, int element, float value) {
    words[static_cast<std::size_t>(element / 2)] |= static_cast<std::uint32_t>(bf16(value).bits)
                                                    << (element % 2 * 16);
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4;
    const int twice = lane % 4 * 2;
    for (int i = 0; i < 8; ++i) {
      put(a, lane * 8 + i, a_at(group + kARow[i], twice + kAColumn[i]));
    }
    for (int i = 0; i < 4; ++i) {
      put(b, lane * 4 + i, b_at(twice + kBRow[i], group));
      c[static_cast<std::size_t>(lane * 4 + i)] = c_at(group + kDRow[i], twice + kDColumn[i]);
    }
  }
  const DeviceArray<std::uint32_t> a_data(a);
  const DeviceArray<std::uint32_t> b_data(b);
  const DeviceArray<float> c_data(c);
  const DeviceArray<float> out(128, 0.0F);
  launch(mma_kernel, one_warp(), a_data.data(), b_data.data(), c_data.data(), out.data());
  const std::vector<float> d = out.values();
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int m = lane / 4 + kDRow[i];
      const int n = lane % 4 * 2 + kDColumn[i];
      float expected = c_at(m, n);
      for (int k = 0; k < 16; ++k) {
        expected += a_at(m, k) * b_at(k, n);
      }
      EXPECT_EQ(d[static_cast<std::size_t>(lane * 4 + i)], expected) << "m " << m << ", n " << n;
    }
  }
}

// Rounds to nearest even, the first argument in the low half.
__global__ void pack_kernel(std::uint32_t* out) {
  if (threadIdx.x == 0) {
    out[0] = gpu::pack_bf16(1.0F, -2.0F);
    out[1] = gpu::pack_bf16(1.00390625F, 1.01171875F);  // 1 + 2^-8 and 1 + 3 * 2^-8: both halfway
  }
}

TEST_F(WarpInstructions, PackRounds) {
  const DeviceArray<std::uint32_t> out(2, 0);
  launch(pack_kernel, one_warp(), out.data());
  EXPECT_EQ(out.values(), (std::vector<std::uint32_t>{0xC0003F80U, 0x3F823F80U}));
}

// ---- cp.async

// Four groups of 16 bytes a lane, the third filled with zeros; the first two are waited for before
// the rest.
__global__ void copy_kernel(const std::uint32_t* in, std::uint32_t* out) {
  auto* const shared = gpu::dynamic_shared<std::uint32_t>();
  const int lane = gpu::lane_id();
  for (int group = 0; group < 4; ++group) {
    const int at = group * 128 + lane * 4;
    gpu::copy_async_16(shared + at, in + at, group != 2);
    gpu::copy_async_commit();
  }
  gpu::copy_async_wait<2>();
  gpu::sync_warp();
  const int other = 31 - lane;  // what another lane has copied
  for (int i = 0; i < 4; ++i) {
    out[lane * 4 + i] = shared[other * 4 + i];
    out[128 + lane * 4 + i] = shared[128 + other * 4 + i];
  }
  gpu::copy_async_wait<0>();
  gpu::sync_warp();
  for (int i = 0; i < 4; ++i) {
    out[256 + lane * 4 + i] = shared[256 + other * 4 + i];
    out[384 + lane * 4 + i] = shared[384 + other * 4 + i];
  }
}

TEST_F(WarpInstructions, CopiesArriveByGroups) {
  std::vector<std::uint32_t> words(512);
  for (std::size_t i = 0; i < words.size(); ++i) {
    words[i] = static_cast<std::uint32_t>(i + 1);
  }
  const DeviceArray<std::uint32_t> in(words);
  const DeviceArray<std::uint32_t> out(512, 0xFFFFFFFFU);
  launch(copy_kernel, one_warp(2048), in.data(), out.data());
  const std::vector<std::uint32_t> values = out.values();
  for (std::size_t group = 0; group < 4; ++group) {
    for (std::size_t lane = 0; lane < 32; ++lane) {
      for (std::size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(values[group * 128 + lane * 4 + i],
                  group == 2 ? 0 : group * 128 + (31 - lane) * 4 + i + 1);
      }
    }
  }
}

}  // namespace
}  // namespace memphis::kernels
