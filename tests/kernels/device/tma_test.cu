// SPDX-License-Identifier: Apache-2.0
//
// cp.async.bulk.tensor: which element of a tensor comes to lie where in shared memory, and back.
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <gpu_hopper_tma.h>
#include <gpu_launch.h>
#include <gpu_warp.h>

#include "csrc/core/error.h"
#include "tests/kernels/device/device_array.h"
#include "tests/kernels/device/layout_tables.h"
#include "tests/support/error_text.h"

namespace memphis::kernels {
namespace {

using memphis::test::DeviceArray;

constexpr std::array kSwizzles = {
    Swizzle::none, Swizzle::bytes_32, Swizzle::bytes_64, Swizzle::bytes_128};

class Tma : public testing::Test {
 protected:
  void SetUp() override {
    const std::string reason = memphis::test::no_device_reason(90);
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
  }
};

struct Corner {
  int at[5];
};

template <int kDims>
__device__ __forceinline__ void load_box(void* shared,
                                         const TensorMap& map,
                                         gpu::Mbarrier* barrier,
                                         const Corner& corner) {
  const int* const c = corner.at;
  if constexpr (kDims == 1) {
    gpu::tma_load(shared, map, barrier, c[0]);
  } else if constexpr (kDims == 2) {
    gpu::tma_load(shared, map, barrier, c[0], c[1]);
  } else if constexpr (kDims == 3) {
    gpu::tma_load(shared, map, barrier, c[0], c[1], c[2]);
  } else if constexpr (kDims == 4) {
    gpu::tma_load(shared, map, barrier, c[0], c[1], c[2], c[3]);
  } else {
    gpu::tma_load(shared, map, barrier, c[0], c[1], c[2], c[3], c[4]);
  }
}
template <int kDims>
__device__ __forceinline__ void store_box(const TensorMap& map,
                                          const void* shared,
                                          const Corner& corner) {
  const int* const c = corner.at;
  if constexpr (kDims == 1) {
    gpu::tma_store(map, shared, c[0]);
  } else if constexpr (kDims == 2) {
    gpu::tma_store(map, shared, c[0], c[1]);
  } else if constexpr (kDims == 3) {
    gpu::tma_store(map, shared, c[0], c[1], c[2]);
  } else if constexpr (kDims == 4) {
    gpu::tma_store(map, shared, c[0], c[1], c[2], c[3]);
  } else {
    gpu::tma_store(map, shared, c[0], c[1], c[2], c[3], c[4]);
  }
}

// A box into shared memory, and shared memory as it lies to `out`.
template <int kDims>
__global__ void load_kernel(const __grid_constant__ TensorMap map,
                            Corner corner,
                            int bytes,
                            std::uint32_t* out) {
  auto* const box = gpu::dynamic_shared_for_tma<std::uint32_t>();
  __shared__ gpu::Mbarrier barrier;
  if (threadIdx.x == 0) {
    gpu::mbarrier_init(&barrier, 1);
    gpu::fence_mbarrier_init();
    gpu::mbarrier_arrive_expect(&barrier, bytes);
    load_box<kDims>(box, map, &barrier, corner);
  }
  gpu::sync_threads();  // the mbarrier is there
  gpu::mbarrier_wait(&barrier, 0);
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += static_cast<int>(blockDim.x)) {
    out[i] = box[i];
  }
}

// Shared memory as `in` says, and a box of it to the tensor.
template <int kDims>
__global__ void store_kernel(const __grid_constant__ TensorMap map,
                             Corner corner,
                             int bytes,
                             const std::uint32_t* in) {
  auto* const box = gpu::dynamic_shared_for_tma<std::uint32_t>();
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += static_cast<int>(blockDim.x)) {
    box[i] = in[i];
  }
  gpu::fence_proxy_async();
  gpu::sync_threads();  // the box is written
  if (threadIdx.x == 0) {
    store_box<kDims>(map, box, corner);
    gpu::tma_commit();
    gpu::tma_wait<0>();
  }
}

Launch launch_of(std::size_t bytes) {
  return {.grid = {},
          .block = {.x = 64},
          .shared_bytes = bytes,
          .stream = {.device = Device::cuda, .handle = nullptr}};
}

void launch_load(const TiledTensor& tensor,
                 const Corner& corner,
                 const DeviceArray<std::uint32_t>& out) {
  const TensorMap map = make_tensor_map(tensor);
  const auto bytes = static_cast<int>(box_bytes(tensor));
  const Launch shape = launch_of(box_bytes(tensor));
  constexpr std::array kKernels = {
      load_kernel<1>, load_kernel<2>, load_kernel<3>, load_kernel<4>, load_kernel<5>};
  launch(kKernels[tensor.dims.size() - 1], shape, map, corner, bytes, out.data());
}
void launch_store(const TiledTensor& tensor,
                  const Corner& corner,
                  const DeviceArray<std::uint32_t>& in) {
  const TensorMap map = make_tensor_map(tensor);
  const auto bytes = static_cast<int>(box_bytes(tensor));
  const Launch shape = launch_of(box_bytes(tensor));
  constexpr std::array kKernels = {
      store_kernel<1>, store_kernel<2>, store_kernel<3>, store_kernel<4>, store_kernel<5>};
  launch(kKernels[tensor.dims.size() - 1], shape, map, corner, bytes, in.data());
}

// Element `i` of a memory of `dtype`s whose bits are their index from 1 on: never zero.
std::uint32_t element(const std::vector<std::uint32_t>& words, DType dtype, std::size_t i) {
  if (dtype == DType::f32) {
    return words[i];
  }
  return words[i / 2] >> (i % 2 * 16) & 0xFFFFU;
}
void set_element(std::vector<std::uint32_t>& words,
                 DType dtype,
                 std::size_t i,
                 std::uint32_t value) {
  if (dtype == DType::f32) {
    words[i] = value;
  } else {
    words[i / 2] = (words[i / 2] & ~(0xFFFFU << i % 2 * 16)) | value << i % 2 * 16;
  }
}
std::vector<std::uint32_t> counted(DType dtype, std::size_t count) {
  std::vector<std::uint32_t> words(count * size_of(dtype) / 4);
  for (std::size_t i = 0; i < count; ++i) {
    set_element(words, dtype, i, static_cast<std::uint32_t>(i + 1));
  }
  return words;
}

// Loads and stores a box at `corner` of a tensor of 2 dims, rows of `row_stride` elements, and
// compares with the element by element definition.
void check_box_of_rows(DType dtype, Swizzle swizzle, int box_columns, int box_rows, Corner corner) {
  constexpr int kRows = 21;
  constexpr int kColumns = 72;
  constexpr int kRowStride = 80;
  const int bytes_each = static_cast<int>(size_of(dtype));
  const auto count = static_cast<std::size_t>(kRows * kRowStride);
  const DeviceArray<std::uint32_t> tensor(counted(dtype, count));
  const TiledTensor tiled{.data = tensor.data(),
                          .dtype = dtype,
                          .dims = {kColumns, kRows},
                          .stride_bytes = {kRowStride * bytes_each},
                          .box = {box_columns, box_rows},
                          .swizzle = swizzle};
  const auto box_count = static_cast<std::size_t>(box_columns * box_rows);
  const auto box_words = box_count * size_of(dtype) / 4;

  // A load: every element of the box, zeros beyond the tensor.
  const DeviceArray<std::uint32_t> loaded(box_words, 0xFFFFFFFFU);
  launch_load(tiled, corner, loaded);
  const std::vector<std::uint32_t> shared = loaded.values();
  const auto place = [&](int row, int column) {  // in elements
    if (swizzle == Swizzle::none) {
      return static_cast<std::size_t>(row * box_columns + column);
    }
    return test::place_of(swizzle, row, column * bytes_each) / size_of(dtype);
  };
  for (int row = 0; row < box_rows; ++row) {
    for (int column = 0; column < box_columns; ++column) {
      const int y = corner.at[1] + row;
      const int x = corner.at[0] + column;
      const bool inside = y >= 0 && y < kRows && x >= 0 && x < kColumns;
      const auto expected = static_cast<std::uint32_t>(inside ? y * kRowStride + x + 1 : 0);
      ASSERT_EQ(element(shared, dtype, place(row, column)), expected)
          << "row " << row << ", column " << column;
    }
  }

  if (corner.at[0] < 0 || corner.at[1] < 0) {
    return;  // such a box can be read alone
  }
  // A store: shared memory counted from 0x2000, to what of the box lies in the tensor.
  std::vector<std::uint32_t> from = counted(dtype, box_count);
  for (std::size_t i = 0; i < box_count; ++i) {
    set_element(from, dtype, i, static_cast<std::uint32_t>(0x2000 + i));
  }
  launch_store(tiled, corner, DeviceArray<std::uint32_t>(from));
  const std::vector<std::uint32_t> stored = tensor.values();
  for (int y = 0; y < kRows; ++y) {
    for (int x = 0; x < kRowStride; ++x) {
      const int row = y - corner.at[1];
      const int column = x - corner.at[0];
      const bool inside =
          x < kColumns && row >= 0 && row < box_rows && column >= 0 && column < box_columns;
      const auto at = static_cast<std::size_t>(y * kRowStride + x);
      const std::size_t expected = inside ? 0x2000 + place(row, column) : at + 1;
      ASSERT_EQ(element(stored, dtype, at), expected) << "y " << y << ", x " << x;
    }
  }
}

// Elements of 16 bytes, by which the innermost coordinate counts.
int chunk_of(DType dtype) {
  return 16 / static_cast<int>(size_of(dtype));
}

TEST_F(Tma, BoxesLieAsTheSwizzlesTablesSay) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const Swizzle swizzle : kSwizzles) {
      const int row = swizzle == Swizzle::none ? 96 : test::row_bytes(swizzle);
      const int columns = row / static_cast<int>(size_of(dtype));
      SCOPED_TRACE(std::string(name_of(dtype)) + ", rows of " + std::to_string(row) + " bytes");
      check_box_of_rows(dtype, swizzle, columns, 16, {{chunk_of(dtype), 2}});
    }
  }
}

TEST_F(Tma, ZerosComeFromBeyondTheTensorAndNothingGoesThere) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const int columns = 64 / static_cast<int>(size_of(dtype));
    for (const Swizzle swizzle : {Swizzle::none, Swizzle::bytes_64}) {
      // Of 72 columns: from before the first, from the last 16 bytes, from behind the last.
      const int chunk = chunk_of(dtype);
      for (const Corner corner : {Corner{{-chunk, -3}},
                                  Corner{{72 - chunk, 17}},
                                  Corner{{chunk, 17}},
                                  Corner{{-chunk, 17}},
                                  Corner{{104, 0}},
                                  Corner{{0, -16}}}) {
        SCOPED_TRACE(std::string(name_of(dtype)) + " at " + std::to_string(corner.at[0]) + ", " +
                     std::to_string(corner.at[1]));
        check_box_of_rows(dtype, swizzle, columns, 16, corner);
      }
    }
  }
}

// In every number of dims: the box's coordinates run innermost first, and lie so in shared memory.
TEST_F(Tma, OneToFiveDims) {
  constexpr std::array<int, 5> kDims = {12, 5, 4, 3, 2};
  constexpr std::array<int, 5> kBox = {8, 2, 3, 2, 1};
  constexpr Corner kCorner = {{4, 2, 1, 1, 1}};
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
    const DeviceArray<std::uint32_t> tensor(counted(DType::f32, count));
    tiled.data = tensor.data();
    const DeviceArray<std::uint32_t> out(box_bytes(tiled) / 4, 0);
    launch_load(tiled, kCorner, out);
    const std::vector<std::uint32_t> values = out.values();
    for (std::size_t i = 0; i < values.size(); ++i) {
      std::size_t rest = i;
      std::size_t stride = 1;
      std::size_t index = 0;
      for (std::size_t dim = 0; dim < num_dims; ++dim) {
        const auto side = static_cast<std::size_t>(kBox[dim]);
        index += (rest % side + static_cast<std::size_t>(kCorner.at[dim])) * stride;
        rest /= side;
        stride *= static_cast<std::size_t>(kDims[dim]);
      }
      // A corner of 4 and a box of 8 in 12 elements: all inside.
      ASSERT_EQ(values[i], index + 1) << "element " << i;
    }

    // And back, to the place that it came from.
    const DeviceArray<std::uint32_t> copy(count, 0);
    tiled.data = copy.data();
    launch_store(tiled, kCorner, out);
    std::size_t num_written = 0;
    const std::vector<std::uint32_t> stored = copy.values();
    for (std::size_t i = 0; i < count; ++i) {
      ASSERT_TRUE(stored[i] == 0 || stored[i] == i + 1) << "element " << i << ": " << stored[i];
      num_written += stored[i] != 0 ? 1 : 0;
    }
    EXPECT_EQ(num_written, values.size());
  }
}

// Rows of 64 floats through a ring of two boxes, doubled on the way: a thread that loads, all that
// compute, and stores that are only waited for where their box is used again.
__global__ void double_kernel(const __grid_constant__ TensorMap from,
                              const __grid_constant__ TensorMap to,
                              int rows) {
  constexpr int kPlaces = 2;
  constexpr int kRow = 64;
  auto* const boxes = gpu::dynamic_shared_for_tma<float>();  // [2][64] in, [2][64] out
  __shared__ gpu::Mbarrier full[kPlaces];
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int place = 0; place < kPlaces; ++place) {
      gpu::mbarrier_init(&full[place], 1);
    }
    gpu::fence_mbarrier_init();
    for (int row = 0; row < kPlaces && row < rows; ++row) {
      gpu::mbarrier_arrive_expect(&full[row], kRow * 4);
      gpu::tma_load(boxes + row * kRow, from, &full[row], 0, row);
    }
  }
  gpu::sync_threads();  // the mbarriers are there
  for (int row = 0; row < rows; ++row) {
    const int place = row % kPlaces;
    float* const in = boxes + place * kRow;
    float* const out = boxes + (kPlaces + place) * kRow;
    gpu::mbarrier_wait(&full[place], static_cast<unsigned>(row / kPlaces) % 2);
    const float value = in[thread];
    gpu::fence_proxy_async();
    if (thread == 0) {
      gpu::tma_wait_read<kPlaces - 1>();
    }
    gpu::sync_threads();  // `in` is read, and the store that read `out` is done
    if (thread == 0 && row + kPlaces < rows) {
      gpu::mbarrier_arrive_expect(&full[place], kRow * 4);
      gpu::tma_load(in, from, &full[place], 0, row + kPlaces);
    }
    out[thread] = 2 * value;
    gpu::fence_proxy_async();
    gpu::sync_threads();  // `out` is written
    if (thread == 0) {
      gpu::tma_store(to, out, 0, row);
      gpu::tma_commit();
    }
  }
  if (thread == 0) {
    gpu::tma_wait<0>();
  }
}

TEST_F(Tma, BoxesGoThroughARing) {
  constexpr int kRows = 9;
  std::vector<float> values(64 * kRows);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i);
  }
  const DeviceArray<float> in(values);
  const DeviceArray<float> out(values.size(), -1.0F);
  const auto map = [&](const DeviceArray<float>& array) {
    return make_tensor_map({.data = array.data(),
                            .dtype = DType::f32,
                            .dims = {64, kRows},
                            .stride_bytes = {256},
                            .box = {64, 1}});
  };
  launch(double_kernel, launch_of(4 * 256), map(in), map(out), kRows);
  const std::vector<float> doubled = out.values();
  for (std::size_t i = 0; i < doubled.size(); ++i) {
    ASSERT_EQ(doubled[i], 2 * values[i]) << i;
  }
}

// What cuTensorMapEncodeTiled refuses, said in words. Needs no device.
TEST(TensorMapCheck, SaysWhatIsWrong) {
  const auto aligned = [](int offset) { return reinterpret_cast<const void*>(0x10000L + offset); };
  const TiledTensor good{.data = aligned(0),
                         .dtype = DType::bf16,
                         .dims = {100, 50},
                         .stride_bytes = {208},
                         .box = {64, 50},
                         .swizzle = Swizzle::bytes_128};
  EXPECT_NO_THROW(check(good));
  EXPECT_EQ(box_bytes(good), 6400U);

  const auto text = [&](const std::function<void(TiledTensor&)>& spoil) {
    TiledTensor bad = good;
    spoil(bad);
    const std::string message = memphis::test::error_text<ContractError>([&] { check(bad); });
    EXPECT_TRUE(memphis::test::follows_grammar(message));
    return message;
  };
  const auto says = [](const std::string& message, const std::string& part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  says(text([](TiledTensor& t) { t.dtype = DType::i32; }), "of dtype i32");
  says(text([](TiledTensor& t) { t.dims = {}; }), "of 0 dims");
  says(text([](TiledTensor& t) { t.dims.resize(6, 1); }), "of 6 dims");
  says(text([](TiledTensor& t) { t.stride_bytes = {}; }), "2 dims with 0 strides and 2 sides");
  says(text([](TiledTensor& t) { t.box = {64}; }), "2 dims with 1 strides and 1 sides");
  says(text([&](TiledTensor& t) { t.data = aligned(8); }), "not 16-byte aligned");
  says(text([](TiledTensor& t) { t.dims[1] = 0; }), "0 elements in dim 1");
  says(text([](TiledTensor& t) { t.dims[0] = (1LL << 32) + 1; }), "4294967297 elements in dim 0");
  says(text([](TiledTensor& t) { t.box[1] = 257; }), "a box of 257 elements in dim 1");
  says(text([](TiledTensor& t) { t.box[1] = 0; }), "a box of 0 elements in dim 1");
  says(text([](TiledTensor& t) { t.stride_bytes[0] = 200; }), "a stride of 200 bytes in dim 1");
  says(text([](TiledTensor& t) { t.stride_bytes[0] = 1LL << 40; }), "a stride of 1099511627776");
  says(text([](TiledTensor& t) {
         t.swizzle = Swizzle::none;
         t.box[0] = 12;
       }),
       "a box of 24 bytes in the innermost dim (TMA copies multiples of 16)");
  says(text([](TiledTensor& t) { t.swizzle = Swizzle::bytes_64; }),
       "a box of 128 bytes in the innermost dim under a swizzle of 64");
  says(text([](TiledTensor& t) { t.box[0] = 32; }),
       "a box of 64 bytes in the innermost dim under a swizzle of 128");
}

}  // namespace
}  // namespace memphis::kernels
