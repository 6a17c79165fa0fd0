// SPDX-License-Identifier: Apache-2.0
//
// wgmma.mma_async m64nNk16 against the PTX ISA's tables: the fragments of d and a, the descriptor's
// fields, and the canonical layouts of operands in shared memory, for both majors and all swizzles.
// Small integers: every product and sum is exact, so results agree bit for bit.
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_hopper_barrier.h>
#include <gpu_hopper_tma.h>
#include <gpu_hopper_wgmma.h>
#include <gpu_launch.h>
#include <gpu_warp.h>

#include "csrc/core/dtype.h"
#include "tests/kernels/device/device_array.h"
#include "tests/kernels/device/layout_tables.h"

namespace memphis::kernels {
namespace {

using memphis::test::DeviceArray;
using Bytes = std::vector<std::uint16_t>;  // of shared memory, as bf16

constexpr std::array kSwizzles = {
    Swizzle::none, Swizzle::bytes_32, Swizzle::bytes_64, Swizzle::bytes_128};

class Wgmma : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = memphis::test::no_device_reason(90);
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};

// A matrix of small integers [rows, 16 * steps]: rows are m of a, n of b.
struct Matrix {
  int rows;
  int depth;
  int seed;
  float at(int row, int k) const { return static_cast<float>((row * 7 + k * 5 + seed) % 13 - 6); }
};

// How a matrix lies in shared memory, and what its descriptor says.
struct Tile {
  Bytes image;
  int leading_bytes = 0;
  int stride_bytes = 0;
  int step_bytes = 0;  // from 16 columns of k to the next 16
};

// The canonical layouts. A row of the swizzle (16 bytes without) holds 8 to 64 elements along the
// major dimension; 8 such rows, along the other, are an atom; atoms lie one after the other, first
// along the other dimension, then along the major one.
Tile tile_of(const Matrix& matrix, Swizzle swizzle, Major major) {
  const int row_bytes = test::row_bytes(swizzle);
  const int row_elements = row_bytes / 2;
  const int atom_bytes = 8 * row_bytes;
  const int major_size = major == Major::k ? matrix.depth : matrix.rows;
  const int other_size = major == Major::k ? matrix.rows : matrix.depth;
  const int column_bytes = other_size / 8 * atom_bytes;  // a column of atoms
  Tile tile;
  tile.image.resize(static_cast<std::size_t>(matrix.rows * matrix.depth));
  for (int other = 0; other < other_size; ++other) {
    for (int at = 0; at < major_size; ++at) {
      const std::size_t byte = static_cast<std::size_t>(at / row_elements * column_bytes) +
                               test::place_of(swizzle, other, at % row_elements * 2);
      const float value = major == Major::k ? matrix.at(other, at) : matrix.at(at, other);
      tile.image[byte / 2] = bf16(value).bits;
    }
  }
  if (major == Major::k) {
    tile.stride_bytes = atom_bytes;                                     // from 8 rows to the next 8
    tile.leading_bytes = swizzle == Swizzle::none ? column_bytes : 16;  // 8 columns; unused: 1
    // 16 columns are 32 bytes of a row, then the next column of atoms.
    tile.step_bytes = swizzle == Swizzle::none ? 2 * column_bytes : 32;
  } else if (swizzle == Swizzle::none) {
    tile.leading_bytes = atom_bytes;   // from 8 values of k to the next 8
    tile.stride_bytes = column_bytes;  // from 8 of mn to the next 8
    tile.step_bytes = 2 * atom_bytes;
  } else {
    tile.leading_bytes = column_bytes;  // from a row of mn to the next
    tile.stride_bytes = atom_bytes;     // from 8 values of k to the next 8
    tile.step_bytes = 2 * atom_bytes;
  }
  return tile;
}

struct Operand {
  Swizzle swizzle;
  int leading_bytes;
  int stride_bytes;
  int step_bytes;
  int num_bytes;
};
Operand operand_of(const Tile& tile, Swizzle swizzle) {
  return {swizzle,
          tile.leading_bytes,
          tile.stride_bytes,
          tile.step_bytes,
          static_cast<int>(tile.image.size() * 2)};
}

// Where b begins in shared memory: after a, at a multiple of the widest pattern.
constexpr int b_offset(int a_bytes) {
  return (a_bytes + 1023) / 1024 * 1024;
}

__device__ __forceinline__ void copy_in(unsigned char* shared,
                                        const std::uint32_t* from,
                                        int num_bytes) {
  auto* const to = reinterpret_cast<std::uint32_t*>(shared);
  for (int i = static_cast<int>(threadIdx.x); i < num_bytes / 4; i += 128) {
    to[i] = from[i];
  }
}

enum class Source { shared, registers };

// d = a b, or start + a b, over all steps of k. `fragments` are a's of each step and thread, for
// Source::registers; `out` receives the registers of each thread.
template <int kN, Source kSourceA, Major kMajorA, Major kMajorB>
__global__ void __launch_bounds__(128) product_kernel(Operand a,
                                                      Operand b,
                                                      int num_steps,
                                                      const std::uint32_t* a_image,
                                                      const std::uint32_t* b_image,
                                                      const std::uint32_t* fragments,
                                                      const float* start,
                                                      float* out) {
  auto* const shared = gpu::dynamic_shared_for_tma<unsigned char>();
  unsigned char* const b_tile = shared + b_offset(a.num_bytes);
  copy_in(shared, a_image, a.num_bytes);
  copy_in(b_tile, b_image, b.num_bytes);
  gpu::fence_proxy_async();
  gpu::sync_threads();  // both tiles are written

  const int thread = static_cast<int>(threadIdx.x);
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    d[i] = start == nullptr ? 1000.0F : start[thread * (kN / 2) + i];
  }
  for (int step = 0; step < num_steps; ++step) {
    const std::uint64_t b_descriptor =
        advance(gpu::wgmma_descriptor(b_tile, b.swizzle, b.leading_bytes, b.stride_bytes),
                step * b.step_bytes);
    const bool accumulate = start != nullptr || step > 0;
    if constexpr (kSourceA == Source::shared) {
      const std::uint64_t a_descriptor =
          advance(gpu::wgmma_descriptor(shared, a.swizzle, a.leading_bytes, a.stride_bytes),
                  step * a.step_bytes);
      gpu::wgmma_fence(d);
      gpu::wgmma<kMajorA, kMajorB>(d, a_descriptor, b_descriptor, accumulate);
    } else {
      std::uint32_t fragment[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        fragment[i] = fragments[(step * 128 + thread) * 4 + i];
      }
      gpu::wgmma_fence(d);
      gpu::wgmma<kMajorB>(d, fragment, b_descriptor, accumulate);
    }
    gpu::wgmma_commit();
    gpu::wgmma_wait<0>(d);
  }
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    out[thread * (kN / 2) + i] = d[i];
  }
}

// PTX ISA, "Register fragments and shared memory matrix layouts", d of m64nNk16: row and column of
// register `i` of thread `thread`.
int d_row(int thread, int i) {
  return thread / 32 * 16 + thread % 32 / 4 + (i % 4 >= 2 ? 8 : 0);
}
int d_column(int thread, int i) {
  return i / 4 * 8 + thread % 4 * 2 + i % 2;
}
// The same of a: two elements to a register, eight a thread.
int a_row(int thread, int i) {
  constexpr int kDown[8] = {0, 0, 8, 8, 0, 0, 8, 8};
  return thread / 32 * 16 + thread % 32 / 4 + kDown[i];
}
int a_column(int thread, int i) {
  constexpr int kRight[8] = {0, 1, 0, 1, 8, 9, 8, 9};
  return thread % 4 * 2 + kRight[i];
}

// The lanes that hold columns 0 to 7 of rows 0 to 15 of d in warp 0, from the manual's figure.
TEST(WgmmaTables, TheFiguresFirstRowsAgreeWithTheFormulas) {
  constexpr int kLanes[3][8] = {
      {0, 0, 1, 1, 2, 2, 3, 3}, {4, 4, 5, 5, 6, 6, 7, 7}, {28, 28, 29, 29, 30, 30, 31, 31}};
  constexpr int kRows[3] = {0, 1, 7};
  for (int r = 0; r < 3; ++r) {
    for (int column = 0; column < 8; ++column) {
      for (const int below : {0, 8}) {
        const int thread = kLanes[r][column];
        const int i = (below == 0 ? 0 : 2) + column % 2;
        EXPECT_EQ(d_row(thread, i), kRows[r] + below);
        EXPECT_EQ(d_column(thread, i), column);
        EXPECT_EQ(d_row(thread + 96, i + 12), 48 + kRows[r] + below);  // warp 3, columns 24 on
        EXPECT_EQ(d_column(thread + 96, i + 12), 24 + column);
      }
    }
  }
}

// matrix_descriptor against the manual's table of bits: 0-13 address, 16-29 leading, 32-45 stride,
// 62-63 mode, all in units of 16 bytes.
TEST(WgmmaTables, DescriptorFields) {
  EXPECT_EQ(matrix_descriptor(0x400, Swizzle::none, 128, 256), 0x0000'0010'0008'0040U);
  EXPECT_EQ(matrix_descriptor(0x8000, Swizzle::bytes_128, 16, 1024), 0x4000'0040'0001'0800U);
  EXPECT_EQ(matrix_descriptor(0x8000, Swizzle::bytes_64, 16, 512), 0x8000'0020'0001'0800U);
  EXPECT_EQ(matrix_descriptor(0x8000, Swizzle::bytes_32, 16, 256), 0xC000'0010'0001'0800U);
  EXPECT_EQ(matrix_descriptor(0x3FFF0, Swizzle::none, 0x3FFF0, 0x3FFF0), 0x0000'3FFF'3FFF'3FFFU);
  EXPECT_EQ(advance(matrix_descriptor(0x400, Swizzle::bytes_128, 16, 1024), 32),
            0x4000'0040'0001'0042U);
}

// The tables of layout_tables.h against the formula that kernels use.
TEST(WgmmaTables, SwizzleIsAnExclusiveOrOfTheRow) {
  for (const Swizzle swizzle : {Swizzle::bytes_32, Swizzle::bytes_64, Swizzle::bytes_128}) {
    const int row_bytes = test::row_bytes(swizzle);
    EXPECT_EQ(swizzle_bytes(swizzle), row_bytes);
    for (int row = 0; row < 16; ++row) {
      for (int byte = 0; byte < row_bytes; ++byte) {
        EXPECT_EQ(swizzled(static_cast<std::uint32_t>(row * row_bytes + byte), swizzle),
                  test::place_of(swizzle, row, byte));
      }
    }
  }
  EXPECT_EQ(swizzled(0x3F0, Swizzle::none), 0x3F0U);
}

std::vector<std::uint32_t> words_of(const Bytes& image) {
  std::vector<std::uint32_t> words(image.size() / 2);
  for (std::size_t i = 0; i < words.size(); ++i) {
    words[i] = image[2 * i] | static_cast<std::uint32_t>(image[2 * i + 1]) << 16U;
  }
  return words;
}

template <int kN, Major kMajorA, Major kMajorB, Source kSourceA = Source::shared>
void check_product(Swizzle swizzle_a, Swizzle swizzle_b, bool with_start) {
  // As deep as one row of the narrower swizzle: descriptors step within it.
  const auto depth_of = [](Swizzle swizzle, Major major) {
    return major == Major::k && swizzle != Swizzle::none ? test::row_bytes(swizzle) / 2 : 64;
  };
  const int depth = std::min(depth_of(swizzle_a, kMajorA), depth_of(swizzle_b, kMajorB));
  const int num_steps = depth / 16;
  // A k-major tile's rows are as wide as its swizzle.
  const Matrix a{
      64, kMajorA == Major::k ? std::max(depth, depth_of(swizzle_a, kMajorA)) : depth, 3};
  const Matrix b{
      kN, kMajorB == Major::k ? std::max(depth, depth_of(swizzle_b, kMajorB)) : depth, 8};
  const Tile a_tile = tile_of(a, swizzle_a, kMajorA);
  const Tile b_tile = tile_of(b, swizzle_b, kMajorB);

  std::vector<std::uint32_t> fragments(static_cast<std::size_t>(num_steps * 128 * 4));
  for (int step = 0; step < num_steps; ++step) {
    for (int thread = 0; thread < 128; ++thread) {
      for (int i = 0; i < 8; ++i) {
        const bf16 value(a.at(a_row(thread, i), step * 16 + a_column(thread, i)));
        fragments[static_cast<std::size_t>((step * 128 + thread) * 4 + i / 2)] |=
            static_cast<std::uint32_t>(value.bits) << (i % 2 * 16);
      }
    }
  }
  std::vector<float> start(128 * kN / 2);
  for (std::size_t i = 0; i < start.size(); ++i) {
    start[i] = static_cast<float>(i % 1024) - 512.0F;
  }

  const DeviceArray<std::uint32_t> a_image(words_of(a_tile.image));
  const DeviceArray<std::uint32_t> b_image(words_of(b_tile.image));
  const DeviceArray<std::uint32_t> a_fragments(fragments);
  const DeviceArray<float> d_start(start);
  const DeviceArray<float> out(start.size(), -1.0F);
  const Operand a_operand = operand_of(a_tile, swizzle_a);
  const Operand b_operand = operand_of(b_tile, swizzle_b);
  launch(product_kernel<kN, kSourceA, kMajorA, kMajorB>,
         {.grid = {},
          .block = {.x = 128},
          .shared_bytes =
              static_cast<std::size_t>(b_offset(a_operand.num_bytes) + b_operand.num_bytes),
          .stream = {.device = Device::cuda, .handle = nullptr}},
         a_operand,
         b_operand,
         num_steps,
         a_image.data(),
         b_image.data(),
         a_fragments.data(),
         with_start ? d_start.data() : nullptr,
         out.data());

  const std::vector<float> values = out.values();
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < kN / 2; ++i) {
      const auto at = static_cast<std::size_t>(thread * (kN / 2) + i);
      float expected = with_start ? start[at] : 0.0F;
      for (int k = 0; k < depth; ++k) {
        expected += a.at(d_row(thread, i), k) * b.at(d_column(thread, i), k);
      }
      ASSERT_EQ(values[at], expected) << "row " << d_row(thread, i) << ", column "
                                      << d_column(thread, i) << ", depth " << depth;
    }
  }
}

std::string name_of(Swizzle a, Swizzle b) {
  return "swizzles of " + std::to_string(swizzle_bytes(a)) + " and " +
         std::to_string(swizzle_bytes(b)) + " bytes";
}

// A tile of an mn-major operand is at least as wide as the swizzle's row.
template <int kN>
bool is_wide_enough(Swizzle swizzle, Major major) {
  return major == Major::k || swizzle == Swizzle::none || test::row_bytes(swizzle) / 2 <= kN;
}

template <int kN, Major kMajorA, Major kMajorB>
void check_all_swizzles() {
  for (const Swizzle a : kSwizzles) {
    for (const Swizzle b : kSwizzles) {
      if (is_wide_enough<kN>(b, kMajorB)) {
        SCOPED_TRACE(name_of(a, b));
        check_product<kN, kMajorA, kMajorB>(a, b, false);
      }
    }
  }
}

TEST_F(Wgmma, BothKMajor) {
  check_all_swizzles<64, Major::k, Major::k>();
}
TEST_F(Wgmma, AMMajor) {
  check_all_swizzles<64, Major::mn, Major::k>();
}
TEST_F(Wgmma, BNMajor) {
  check_all_swizzles<64, Major::k, Major::mn>();
}
TEST_F(Wgmma, BothMnMajor) {
  check_all_swizzles<64, Major::mn, Major::mn>();
}

TEST_F(Wgmma, AFromRegisters) {
  for (const Swizzle b : kSwizzles) {
    SCOPED_TRACE(name_of(Swizzle::none, b));
    check_product<64, Major::k, Major::k, Source::registers>(Swizzle::none, b, false);
    check_product<64, Major::k, Major::mn, Source::registers>(Swizzle::none, b, true);
    check_product<256, Major::k, Major::mn, Source::registers>(Swizzle::none, b, false);
  }
}

TEST_F(Wgmma, EveryWidth) {
  constexpr Swizzle kWide = Swizzle::bytes_128;
  check_product<8, Major::k, Major::k>(kWide, kWide, false);
  check_product<8, Major::k, Major::mn>(kWide, Swizzle::none, true);
  check_product<16, Major::k, Major::k>(kWide, kWide, false);
  check_product<32, Major::k, Major::k>(kWide, kWide, true);
  check_product<128, Major::k, Major::k>(kWide, kWide, false);
  check_product<128, Major::k, Major::mn>(kWide, kWide, true);
  check_product<256, Major::k, Major::k>(kWide, kWide, true);
  check_product<256, Major::k, Major::mn>(kWide, kWide, false);
}

TEST_F(Wgmma, AddsToWhatIsThere) {
  check_product<64, Major::k, Major::k>(Swizzle::bytes_128, Swizzle::bytes_128, true);
}

// c [128, n] = a [128, depth] b^T [n, depth]: TMA brings tiles of 64 columns of k through a ring,
// a warp issues it, two warpgroups multiply with one product in flight while the next is issued,
// and TMA takes c away. What kernels of this project do, in small.
constexpr int kPlaces = 3;
constexpr int kTileN = 128;
constexpr int kTileK = 64;
constexpr int kATile = 128 * kTileK * 2;
constexpr int kBTile = kTileN * kTileK * 2;
static_assert(128 * kTileN * 4 <= kPlaces * (kATile + kBTile), "c fits in the ring");

__global__ void __launch_bounds__(384, 1) matmul_kernel(const __grid_constant__ TensorMap a,
                                                        const __grid_constant__ TensorMap b,
                                                        const __grid_constant__ TensorMap c,
                                                        int num_tiles) {
  auto* const ring = gpu::dynamic_shared_for_tma<unsigned char>();
  __shared__ gpu::Mbarrier full[kPlaces];
  __shared__ gpu::Mbarrier empty[kPlaces];
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  if (threadIdx.x == 0) {
    for (int place = 0; place < kPlaces; ++place) {
      gpu::mbarrier_init(&full[place], 1);
      gpu::mbarrier_init(&empty[place], 256);
    }
    gpu::fence_mbarrier_init();
  }
  gpu::sync_threads();  // the mbarriers are there

  if (group == 2) {  // load
    gpu::decrease_max_registers<40>();
    if (thread == 0) {
      for (int tile = 0; tile < num_tiles; ++tile) {
        const int place = tile % kPlaces;
        unsigned char* const a_tile = ring + place * (kATile + kBTile);
        gpu::mbarrier_wait(&empty[place], 1 - static_cast<unsigned>(tile / kPlaces) % 2);
        gpu::mbarrier_arrive_expect(&full[place], kATile + kBTile);
        gpu::tma_load(a_tile, a, &full[place], tile * kTileK, 0);
        gpu::tma_load(a_tile + kATile, b, &full[place], tile * kTileK, 0);
      }
    }
  } else {  // multiply
    gpu::increase_max_registers<232>();
    float d[kTileN / 2];
    for (int tile = 0; tile < num_tiles; ++tile) {
      const int place = tile % kPlaces;
      const unsigned char* const a_tile = ring + place * (kATile + kBTile) + group * kATile / 2;
      const unsigned char* const b_tile = ring + place * (kATile + kBTile) + kATile;
      gpu::mbarrier_wait(&full[place], static_cast<unsigned>(tile / kPlaces) % 2);
      gpu::wgmma_fence(d);
#pragma unroll
      for (int step = 0; step < kTileK / 16; ++step) {
        gpu::wgmma<Major::k, Major::k>(
            d,
            advance(gpu::wgmma_descriptor(a_tile, Swizzle::bytes_128, 16, 1024), 32 * step),
            advance(gpu::wgmma_descriptor(b_tile, Swizzle::bytes_128, 16, 1024), 32 * step),
            tile > 0 || step > 0);
      }
      gpu::wgmma_commit();
      gpu::wgmma_wait<1>(d);
      if (tile > 0) {
        gpu::mbarrier_arrive(&empty[(tile - 1) % kPlaces]);
      }
    }
    gpu::wgmma_wait<0>(d);
    // Both groups have read all tiles: the ring's memory takes c, in boxes of 32 columns.
    gpu::sync_named(1, 256);
    auto* const c_tile = reinterpret_cast<float*>(ring);
#pragma unroll
    for (int i = 0; i < kTileN / 2; ++i) {
      const int row = group * 64 + thread / 32 * 16 + thread % 32 / 4 + (i % 4 >= 2 ? 8 : 0);
      const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      const auto at =
          static_cast<std::uint32_t>(column / 32 * (128 * 128) + row * 128 + column % 32 * 4);
      c_tile[swizzled(at, Swizzle::bytes_128) / 4] = d[i];
    }
    gpu::fence_proxy_async();
    gpu::sync_named(1, 256);  // c is written
    if (group == 0 && thread == 0) {
      for (int column = 0; column < kTileN; column += 32) {
        gpu::tma_store(c, c_tile + column / 32 * (128 * 32), column, 0);
      }
      gpu::tma_commit();
      gpu::tma_wait<0>();
    }
  }
}

TEST_F(Wgmma, MultipliesWhatTmaBringsThroughARing) {
  constexpr int kRows = 125;  // the last are beyond the tensor
  constexpr int kDepth = 7 * kTileK;
  const Matrix a{kRows, kDepth, 3};
  const Matrix b{kTileN, kDepth, 8};
  const auto bits = [](const Matrix& matrix) {
    std::vector<std::uint16_t> result;
    for (int row = 0; row < matrix.rows; ++row) {
      for (int k = 0; k < matrix.depth; ++k) {
        result.push_back(bf16(matrix.at(row, k)).bits);
      }
    }
    return result;
  };
  const DeviceArray<std::uint16_t> a_data(bits(a));
  const DeviceArray<std::uint16_t> b_data(bits(b));
  const DeviceArray<float> c_data(static_cast<std::size_t>(kRows * kTileN), -1.0F);
  const auto operand = [](const void* data, int rows) {
    return make_tensor_map({.data = data,
                            .dtype = DType::bf16,
                            .dims = {kDepth, rows},
                            .stride_bytes = {kDepth * 2},
                            .box = {kTileK, 128},
                            .swizzle = Swizzle::bytes_128});
  };
  const TensorMap c_map = make_tensor_map({.data = c_data.data(),
                                           .dtype = DType::f32,
                                           .dims = {kTileN, kRows},
                                           .stride_bytes = {kTileN * 4},
                                           .box = {32, 128},
                                           .swizzle = Swizzle::bytes_128});
  launch(matmul_kernel,
         {.grid = {},
          .block = {.x = 384},
          .shared_bytes = std::size_t{kPlaces} * (kATile + kBTile),
          .stream = {.device = Device::cuda, .handle = nullptr}},
         operand(a_data.data(), kRows),
         operand(b_data.data(), kTileN),
         c_map,
         kDepth / kTileK);
  const std::vector<float> c = c_data.values();
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kTileN; ++column) {
      float expected = 0;
      for (int k = 0; k < kDepth; ++k) {
        expected += a.at(row, k) * b.at(column, k);
      }
      ASSERT_EQ(c[static_cast<std::size_t>(row * kTileN + column)], expected)
          << "row " << row << ", column " << column;
    }
  }
}

}  // namespace
}  // namespace memphis::kernels
