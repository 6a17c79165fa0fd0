// SPDX-License-Identifier: Apache-2.0
//
// One block computes one 128 x 128 tile of one expert's product and finds out which from the
// offsets on the device, so the host never waits for the counts: the grid is the most tiles that
// any division of the rows among the experts needs, and blocks past the last tile end at once.
// Compute bound: a tile does 64 FLOP a byte it reads.
#include "kernels/grouped_matmul/grouped_matmul.h"

#include <cstdint>
#include <type_traits>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_mma.h>
#include <gpu_warp.h>

#include "kernels/grouped_matmul/grouped_matmul_hopper.h"
#include "kernels/launch.h"
#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kTile = 128;       // rows and columns of a tile of c
constexpr int kThreads = 256;    // 8 warps
constexpr int kDepth = 32;       // of the reduction, in one step of the bf16 kernel
constexpr int kStages = 4;       // steps in flight: 80 KiB, two blocks on an SM of sm_90
constexpr int kF32Depth = 8;     // the same for f32
constexpr int kGroupTiles = 16;  // tiles down before the next across: what runs together shares L2

enum class Product : std::uint8_t { forward, dx, dweight };

// Which index of an operand is contiguous in memory: that of the reduction, or the outer one, which
// it shares with c.
enum class Major : std::uint8_t { reduction, outer };
constexpr Major a_major(Product product) {
  return product == Product::dweight ? Major::outer : Major::reduction;
}
constexpr Major b_major(Product product) {
  return product == Product::forward ? Major::reduction : Major::outer;
}

//           c             a           b             outer indices of c  reduction
// forward   y [R, N]      x [R, K]    w [E, N, K]   rows of e, N        K
// dx        dx [R, K]     dy [R, N]   w [E, N, K]   rows of e, K        N
// dweight   dw [E, N, K]  dy [R, N]   x [R, K]      N, K                rows of e
template <class T, class Out>
struct Operands {
  Out* c;
  const T* a;
  const T* b;
  const std::int32_t* offsets_E1;
  std::int32_t num_experts;
  std::int64_t N;
  std::int64_t K;
  bool add = false;  // c += instead of c =; of dweight alone
};

// One operand, from where the tile begins: element (outer, reduction) is source[outer * stride +
// reduction], or the other way round. Only the first num_outer belong to it.
template <class T>
struct Matrix {
  const T* source;
  std::int64_t stride;
  int num_outer;
};

template <class T, class Out>
struct Tile {
  Out* c;
  std::int64_t c_stride;
  Matrix<T> a;  // its outer index is the row of c
  Matrix<T> b;  // the column of c
  int reduction;
};

__device__ __forceinline__ std::int64_t tiles_over(std::int64_t count) {
  return (count + kTile - 1) / kTile;
}

// False if this block is past the last tile.
template <Product product, class T, class Out>
__device__ bool find_tile(const Operands<T, Out>& op, Tile<T, Out>& tile) {
  const std::int64_t tiles_across = tiles_over(product == Product::forward ? op.N : op.K);
  std::int64_t index = blockIdx.x;
  std::int64_t tiles_down = 0;
  std::int64_t first_row = 0;
  std::int64_t num_rows = 0;
  int expert = 0;
  for (; expert < op.num_experts; ++expert) {
    first_row = op.offsets_E1[expert];
    num_rows = op.offsets_E1[expert + 1] - first_row;
    // Nothing is added to dweight of an expert without rows: no tiles. Zeros are written to it.
    tiles_down = product != Product::dweight ? tiles_over(num_rows)
                                             : (op.add && num_rows == 0 ? 0 : tiles_over(op.N));
    if (index < tiles_down * tiles_across) {
      break;
    }
    index -= tiles_down * tiles_across;
  }
  if (expert == op.num_experts) {
    return false;
  }

  const std::int64_t group = index / (kGroupTiles * tiles_across);
  const std::int64_t in_group = index % (kGroupTiles * tiles_across);
  const std::int64_t left = tiles_down - group * kGroupTiles;
  const std::int64_t group_tiles = left < kGroupTiles ? left : kGroupTiles;
  const std::int64_t row = (group * kGroupTiles + in_group % group_tiles) * kTile;
  const std::int64_t column = in_group / group_tiles * kTile;

  const auto left_of = [](std::int64_t count, std::int64_t begin) {
    return static_cast<int>(count - begin < kTile ? count - begin : kTile);
  };
  const std::int64_t weight = expert * op.N * op.K;
  if constexpr (product == Product::forward) {
    tile.c = op.c + (first_row + row) * op.N + column;
    tile.c_stride = op.N;
    tile.a = {op.a + (first_row + row) * op.K, op.K, left_of(num_rows, row)};
    tile.b = {op.b + weight + column * op.K, op.K, left_of(op.N, column)};
    tile.reduction = static_cast<int>(op.K);
  } else if constexpr (product == Product::dx) {
    tile.c = op.c + (first_row + row) * op.K + column;
    tile.c_stride = op.K;
    tile.a = {op.a + (first_row + row) * op.N, op.N, left_of(num_rows, row)};
    tile.b = {op.b + weight + column, op.K, left_of(op.K, column)};
    tile.reduction = static_cast<int>(op.N);
  } else {
    tile.c = op.c + weight + row * op.K + column;
    tile.c_stride = op.K;
    tile.a = {op.a + first_row * op.N + row, op.N, left_of(op.N, row)};
    tile.b = {op.b + first_row * op.K + column, op.K, left_of(op.K, column)};
    tile.reduction = static_cast<int>(num_rows);
  }
  return true;
}

// dweight may be added to, everything else is written.
template <Product product, class Out>
__device__ __forceinline__ void store(Out* c, float value, bool add) {
  if constexpr (product == Product::dweight) {
    *c = add ? *c + value : value;
  } else {
    *c = gpu::from_float<Out>(value);
  }
}

// A step's tile of one operand in shared memory: rows of 32 (reduction contiguous) or of 128
// elements (outer contiguous), each 16 bytes longer, so that the eight rows which ldmatrix reads at
// once (80 or 272 bytes apart) lie in different banks.
constexpr int kPadding = 8;
template <Major major>
constexpr int kRowLength = (major == Major::reduction ? kDepth : kTile) + kPadding;
template <Major major>
constexpr int kStageLength = (major == Major::reduction ? kTile : kDepth) * kRowLength<major>;

constexpr int kChunk = gpu::kVectorWidth<bf16>;  // elements of one asynchronous copy
constexpr int kCopies = kTile * kDepth / kChunk / kThreads;

// The copies of one thread: chunks of one row in kCopies rows that lie kRowsApart apart.
template <Major major>
class Loader {
 public:
  __device__ Loader(const Matrix<bf16>& matrix, int reduction)
      : matrix_(matrix),
        reduction_(reduction),
        row_(static_cast<int>(threadIdx.x) / kChunksPerRow),
        column_(static_cast<int>(threadIdx.x) % kChunksPerRow * kChunk) {}

  // Enqueues the copies of the step that begins at `begin`; what lies outside of the operand
  // becomes zero, which adds nothing to c.
  __device__ __forceinline__ void load(bf16* stage, int begin) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = row_ + i * kRowsApart;
      const int outer = major == Major::reduction ? row : column_;
      const int position = begin + (major == Major::reduction ? column_ : row);
      const bool valid = outer < matrix_.num_outer && position < reduction_;
      const std::int64_t offset = major == Major::reduction ? outer * matrix_.stride + position
                                                            : position * matrix_.stride + outer;
      gpu::copy_async_16(
          stage + row * kRowLength<major> + column_, matrix_.source + (valid ? offset : 0), valid);
    }
  }

 private:
  static constexpr int kChunksPerRow = (major == Major::reduction ? kDepth : kTile) / kChunk;
  static constexpr int kRowsApart = kThreads / kChunksPerRow;

  Matrix<bf16> matrix_;
  int reduction_;
  int row_;
  int column_;
};

// Each warp computes 64 x 32 of the tile: 4 x 4 products of 16 x 8.
constexpr int kWarpRows = 64;
constexpr int kWarpColumns = 32;
constexpr int kWarpsDown = kTile / kWarpRows;
constexpr int kFragmentsDown = kWarpRows / 16;
constexpr int kFragmentsAcross = kWarpColumns / 8;
constexpr int kMmaDepth = 16;

// The fragment of a at (outer .. + 16, depth .. + 16): the 8 x 8 matrices in the order (outer,
// depth), (outer + 8, depth), (outer, depth + 8), (outer + 8, depth + 8).
template <Major major>
__device__ __forceinline__ void load_a(std::uint32_t (&fragment)[4],
                                       const bf16* stage,
                                       int outer,
                                       int depth) {
  const int lane = gpu::lane_id();
  if constexpr (major == Major::reduction) {
    const int row = outer + lane % 16;
    gpu::load_matrix_x4(fragment, stage + row * kRowLength<major> + depth + lane / 16 * 8);
  } else {
    const int row = depth + lane / 16 * 8 + lane % 8;
    const int column = outer + lane / 8 % 2 * 8;
    gpu::load_matrix_x4_transposed(fragment, stage + row * kRowLength<major> + column);
  }
}

// Two fragments of b, at outer and outer + 8: the 8 x 8 matrices in the order (outer, depth),
// (outer, depth + 8), (outer + 8, depth), (outer + 8, depth + 8).
template <Major major>
__device__ __forceinline__ void load_b(std::uint32_t (&fragment)[4],
                                       const bf16* stage,
                                       int outer,
                                       int depth) {
  const int lane = gpu::lane_id();
  if constexpr (major == Major::reduction) {
    const int row = outer + lane / 16 * 8 + lane % 8;
    gpu::load_matrix_x4(fragment, stage + row * kRowLength<major> + depth + lane / 8 % 2 * 8);
  } else {
    const int row = depth + lane / 8 % 2 * 8 + lane % 8;
    const int column = outer + lane / 16 * 8;
    gpu::load_matrix_x4_transposed(fragment, stage + row * kRowLength<major> + column);
  }
}

using Sums = float[kFragmentsDown][kFragmentsAcross][4];

template <Product product>
__device__ __forceinline__ void multiply_stage(
    Sums& sums, const bf16* a_stage, const bf16* b_stage, int warp_row, int warp_column) {
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += kMmaDepth) {
    std::uint32_t a[kFragmentsDown][4];
    std::uint32_t b[kFragmentsAcross / 2][4];
#pragma unroll
    for (int i = 0; i < kFragmentsDown; ++i) {
      load_a<a_major(product)>(a[i], a_stage, warp_row + i * 16, depth);
    }
#pragma unroll
    for (int j = 0; j < kFragmentsAcross / 2; ++j) {
      load_b<b_major(product)>(b[j], b_stage, warp_column + j * 16, depth);
    }
#pragma unroll
    for (int i = 0; i < kFragmentsDown; ++i) {
#pragma unroll
      for (int j = 0; j < kFragmentsAcross; ++j) {
        gpu::mma_m16n8k16(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

// grid: upper bound of tiles, block: kThreads, shared: kStages stages of a and b; N and K are
// multiples of 8 and operands 16-byte aligned, so that each chunk is inside its operand or outside.
template <Product product, class Out>
__global__ void __launch_bounds__(kThreads, 2)
    grouped_matmul_tensor_core_kernel(Operands<bf16, Out> op) {
  Tile<bf16, Out> tile;
  if (!find_tile<product>(op, tile)) {
    return;
  }
  constexpr int kAStage = kStageLength<a_major(product)>;
  constexpr int kBStage = kStageLength<b_major(product)>;
  bf16* const a_stages = gpu::dynamic_shared<bf16>();
  bf16* const b_stages = a_stages + kStages * kAStage;
  const Loader<a_major(product)> a(tile.a, tile.reduction);
  const Loader<b_major(product)> b(tile.b, tile.reduction);
  const int num_steps = (tile.reduction + kDepth - 1) / kDepth;
  // One group of copies a step, empty past the last one, so that waiting counts steps.
  const auto load_step = [&](int step) {
    if (step < num_steps) {
      a.load(a_stages + step % kStages * kAStage, step * kDepth);
      b.load(b_stages + step % kStages * kBStage, step * kDepth);
    }
    gpu::copy_async_commit();
  };
  for (int step = 0; step < kStages - 1; ++step) {
    load_step(step);
  }

  const int warp_row = gpu::warp_id() % kWarpsDown * kWarpRows;
  const int warp_column = gpu::warp_id() / kWarpsDown * kWarpColumns;
  Sums sums = {};
  for (int step = 0; step < num_steps; ++step) {
    gpu::copy_async_wait<kStages - 2>();
    // This step's copies of all threads have arrived; all warps have read the previous step's
    // stage, which the next load overwrites.
    gpu::sync_threads();
    load_step(step + kStages - 1);
    const int stage = step % kStages;
    multiply_stage<product>(
        sums, a_stages + stage * kAStage, b_stages + stage * kBStage, warp_row, warp_column);
  }

  const int lane = gpu::lane_id();
#pragma unroll
  for (int i = 0; i < kFragmentsDown; ++i) {
#pragma unroll
    for (int j = 0; j < kFragmentsAcross; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row + i * 16 + half * 8 + lane / 4;
        const int column = warp_column + j * 8 + lane % 4 * 2;
        if (row >= tile.a.num_outer || column >= tile.b.num_outer) {
          continue;
        }
        Out* const c = tile.c + row * tile.c_stride + column;
        const float first = sums[i][j][half * 2];
        const float second = sums[i][j][half * 2 + 1];
        if constexpr (product == Product::dweight) {
          store<product>(c, first, op.add);
          store<product>(c + 1, second, op.add);
        } else {
          // Columns are even and so is the width: the pair is aligned, and inside as a whole.
          *reinterpret_cast<std::uint32_t*>(c) = gpu::pack_bf16(first, second);
        }
      }
    }
  }
}

// A step's tile of one operand, [kF32Depth][kTile]; rows 16 bytes longer, so that the transposing
// writes of a warp (8 depths of 4 outer indices) go to different banks.
constexpr int kF32RowLength = kTile + 4;
constexpr int kF32Loads = kTile * kF32Depth / kThreads;

// The elements of a step that one thread moves, neighbours in memory by neighbouring threads. Held
// in registers while the step before is computed.
template <Major major>
class F32Loader {
 public:
  __device__ F32Loader(const Matrix<float>& matrix, int reduction)
      : matrix_(matrix), reduction_(reduction) {}

  __device__ __forceinline__ void load(int begin) {
#pragma unroll
    for (int i = 0; i < kF32Loads; ++i) {
      const int outer = outer_of(i);
      const int position = begin + depth_of(i);
      const bool valid = outer < matrix_.num_outer && position < reduction_;
      const std::int64_t offset = major == Major::reduction ? outer * matrix_.stride + position
                                                            : position * matrix_.stride + outer;
      values_[i] = valid ? matrix_.source[offset] : 0.0F;
    }
  }
  __device__ __forceinline__ void write(float* stage) const {
#pragma unroll
    for (int i = 0; i < kF32Loads; ++i) {
      stage[depth_of(i) * kF32RowLength + outer_of(i)] = values_[i];
    }
  }

 private:
  __device__ static int depth_of(int i) {
    const int thread = static_cast<int>(threadIdx.x);
    return major == Major::reduction ? thread % kF32Depth : thread / kTile + i * (kThreads / kTile);
  }
  __device__ static int outer_of(int i) {
    const int thread = static_cast<int>(threadIdx.x);
    return major == Major::reduction ? thread / kF32Depth + i * (kThreads / kF32Depth)
                                     : thread % kTile;
  }

  Matrix<float> matrix_;
  int reduction_;
  float values_[kF32Loads];
};

// A thread's eight rows (columns) are four, and the four 64 further on: a warp then reads its 16
// columns of four as 256 contiguous bytes.
constexpr int kHalf = kTile / 2;
__device__ __forceinline__ void load_eight(float (&values)[8], const float* row) {
  const auto low = gpu::load_vector(row);
  const auto high = gpu::load_vector(row + kHalf);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    values[i] = low.values[i];
    values[4 + i] = high.values[i];
  }
}

// grid: upper bound of tiles, block: kThreads, shared: one step of a and b; any N and K. kAdd is
// op.add, known here: with both choices in one kernel its registers would not do.
template <Product product, bool kAdd, class Out>
__global__ void __launch_bounds__(kThreads, 2) grouped_matmul_f32_kernel(Operands<float, Out> op) {
  Tile<float, Out> tile;
  if (!find_tile<product>(op, tile)) {
    return;
  }
  float* const a_stage = gpu::dynamic_shared<float>();
  float* const b_stage = a_stage + kF32Depth * kF32RowLength;
  F32Loader<a_major(product)> a(tile.a, tile.reduction);
  F32Loader<b_major(product)> b(tile.b, tile.reduction);
  constexpr int kThreadsAcross = 16;
  const int thread_row = static_cast<int>(threadIdx.x) / kThreadsAcross * 4;
  const int thread_column = static_cast<int>(threadIdx.x) % kThreadsAcross * 4;
  float sums[8][8] = {};
  a.load(0);
  b.load(0);
  for (int begin = 0; begin < tile.reduction; begin += kF32Depth) {
    a.write(a_stage);
    b.write(b_stage);
    gpu::sync_threads();  // the step is written
    a.load(begin + kF32Depth);
    b.load(begin + kF32Depth);
#pragma unroll
    for (int depth = 0; depth < kF32Depth; ++depth) {
      float a_values[8];
      float b_values[8];
      load_eight(a_values, a_stage + depth * kF32RowLength + thread_row);
      load_eight(b_values, b_stage + depth * kF32RowLength + thread_column);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          sums[i][j] += a_values[i] * b_values[j];
        }
      }
    }
    gpu::sync_threads();  // the step is read: the next may overwrite it
  }

  const auto position = [](int i) { return i % 4 + i / 4 * kHalf; };
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int row = thread_row + position(i);
      const int column = thread_column + position(j);
      if (row < tile.a.num_outer && column < tile.b.num_outer) {
        store<product>(tile.c + row * tile.c_stride + column, sums[i][j], kAdd);
      }
    }
  }
}

// The most tiles that R rows can need: each expert's last tile down may be a part.
template <Product product>
std::int64_t max_tiles(std::int64_t R, std::int64_t E, std::int64_t N, std::int64_t K, bool add) {
  const std::int64_t across = ceil_div(product == Product::forward ? N : K, kTile);
  if constexpr (product == Product::dweight) {
    return (add && R == 0 ? 0 : E) * ceil_div(N, kTile) * across;
  } else {
    return (R == 0 ? 0 : R / kTile + (E < R ? E : R)) * across;
  }
}

template <Product product, class T>
std::size_t shared_bytes() {
  if constexpr (std::is_same_v<T, bf16>) {
    return sizeof(bf16) * kStages *
           (kStageLength<a_major(product)> + kStageLength<b_major(product)>);
  } else {
    return sizeof(float) * 2 * kF32Depth * kF32RowLength;
  }
}

template <Product product, class T, class Out>
void multiply(const Operands<T, Out>& op, std::int64_t R, Stream stream) {
  const Launch shape = {.grid = {.x = max_tiles<product>(R, op.num_experts, op.N, op.K, op.add)},
                        .block = {.x = kThreads},
                        .shared_bytes = shared_bytes<product, T>(),
                        .stream = stream};
  if constexpr (std::is_same_v<T, bf16>) {
    launch(grouped_matmul_tensor_core_kernel<product, Out>, shape, op);
  } else {
    if (product == Product::dweight && op.add) {
      launch(grouped_matmul_f32_kernel<product, product == Product::dweight, Out>, shape, op);
    } else {
      launch(grouped_matmul_f32_kernel<product, false, Out>, shape, op);
    }
  }
}

bool takes_hopper(const TensorView& rows, std::int64_t E, std::int64_t N, std::int64_t K) {
  return rows.dtype == DType::bf16 && hopper_takes_grouped_matmul(rows.dim(0), E, N, K);
}

}  // namespace

void grouped_matmul_forward(const GroupedMatmulForward& op, Stream stream) {
  if (takes_hopper(op.x_RK, op.weight_ENK.dim(0), op.y_RN.dim(1), op.x_RK.dim(1))) {
    return launch_grouped_forward_hopper(op, stream);
  }
  visit_gpu_float(op.x_RK.dtype, [&]<class T>() {
    multiply<Product::forward>(
        Operands<T, T>{.c = op.y_RN.as<T>(),
                       .a = op.x_RK.as<T>(),
                       .b = op.weight_ENK.as<T>(),
                       .offsets_E1 = op.offsets_E1.as<std::int32_t>(),
                       .num_experts = static_cast<std::int32_t>(op.weight_ENK.dim(0)),
                       .N = op.y_RN.dim(1),
                       .K = op.x_RK.dim(1)},
        op.x_RK.dim(0),
        stream);
  });
}

void grouped_matmul_backward(const GroupedMatmulBackward& op, Stream stream) {
  const std::int64_t R = op.dy_RN.dim(0);
  const auto num_experts = static_cast<std::int32_t>(op.offsets_E1.dim(0) - 1);
  const std::int64_t K = op.dx_RK.present() ? op.dx_RK.dim(1) : op.x_RK.dim(1);
  if (takes_hopper(op.dy_RN, num_experts, op.dy_RN.dim(1), K)) {
    if (op.dx_RK.present()) {
      launch_grouped_dx_hopper(op, stream);
    }
    if (op.dweight_ENK.present()) {
      launch_grouped_dweight_hopper(op, stream);
    }
    return;
  }
  visit_gpu_float(op.dy_RN.dtype, [&]<class T>() {
    if (op.dx_RK.present()) {
      multiply<Product::dx>(Operands<T, T>{.c = op.dx_RK.as<T>(),
                                           .a = op.dy_RN.as<T>(),
                                           .b = op.weight_ENK.as<T>(),
                                           .offsets_E1 = op.offsets_E1.as<std::int32_t>(),
                                           .num_experts = num_experts,
                                           .N = op.dy_RN.dim(1),
                                           .K = op.dx_RK.dim(1)},
                            R,
                            stream);
    }
    if (op.dweight_ENK.present()) {
      multiply<Product::dweight>(
          Operands<T, float>{.c = op.dweight_ENK.as<float>(),
                             .a = op.dy_RN.as<T>(),
                             .b = op.x_RK.as<T>(),
                             .offsets_E1 = op.offsets_E1.as<std::int32_t>(),
                             .num_experts = num_experts,
                             .N = op.dy_RN.dim(1),
                             .K = op.dweight_ENK.dim(2),
                             .add = op.weight_gradient == WeightGradient::add},
          R,
          stream);
    }
  });
}

}  // namespace memphis::kernels::cuda
