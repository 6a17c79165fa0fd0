// SPDX-License-Identifier: Apache-2.0
//
// Products of experts in bf16 on sm_90a: y, dx and dweight. The kernel, and how it works, is in
// grouped_matmul_hopper_tile.h; here is what each product reads and how its tiles end.
//
// dweight is written or added to by TMA, each element once, so that its bits do not depend on an
// order.
//
// Bound by the tensor cores: a step is 512 of their cycles a consumer. 40 KiB a step are 7.1 TB/s
// from L2 where 132 SMs make 730 TFLOP/s.
#include "kernels/grouped_matmul/grouped_matmul_hopper.h"

#include "kernels/grouped_matmul/grouped_matmul_hopper_launch.h"
#include "kernels/grouped_matmul/grouped_matmul_hopper_tile.h"

namespace memphis::kernels::cuda {
namespace {

using namespace grouped;  // of the two headers

// ---- y = x weight^T and dx = dy weight: c's rows are those of the experts

template <Major kWeightMajor>
class RowsProduct {
 public:
  struct Arguments {
    GroupedArguments grouped;
    TensorMap x;
    TensorMap weight;
    TensorMap out;
    Rows c;
  };
  static constexpr Major kMajorA = Major::k;
  static constexpr Major kMajorB = kWeightMajor;
  static constexpr bool kOverRows = false;
  static constexpr int kLastSteps = 0;

  __device__ __forceinline__ RowsProduct(const Arguments& arguments, const TileOfC& tile)
      : arguments_(arguments), tile_(tile) {}

  static __device__ __forceinline__ void fetch(const Arguments& arguments,
                                               Stage& stage,
                                               gpu::Mbarrier* full,
                                               const TileOfC& tile,
                                               int reduction) {
    fetch_a<kMajorA>(stage, arguments.x, full, tile.row, reduction);
    fetch_operand<kMajorB, kTileColumns>(
        stage.b, arguments.weight, full, tile.column, reduction, tile.expert);
  }
  __device__ __forceinline__ void write(Outbox& outbox, const float (&sums)[kSums]) const {
#pragma unroll
    for (int chunk = 0; chunk < kTileColumns / kSlotColumns; ++chunk) {
      const int column = tile_.column + chunk * kSlotColumns;
      if (column < arguments_.c.columns) {
        PackedColumns packed;
        pack(packed, sums, chunk * (kSlotColumns / 2));
        write_columns(outbox,
                      packed,
                      arguments_.c,
                      tile_.row,
                      tile_.num_rows,
                      column,
                      [&](const unsigned char* slot) {
                        gpu::tma_store(arguments_.out, slot, column, tile_.row);
                      });
      }
    }
  }

 private:
  const Arguments& arguments_;
  const TileOfC& tile_;
};

// ---- dweight [+]= dy^T x: c is the experts' weights

class WeightProduct {
 public:
  struct Arguments {
    GroupedArguments grouped;
    TensorMap dy;
    TensorMap x;
    TensorMap dweight;
  };
  static constexpr Major kMajorA = Major::mn;
  static constexpr Major kMajorB = Major::mn;
  static constexpr bool kOverRows = true;
  static constexpr int kLastSteps = 0;

  __device__ __forceinline__ WeightProduct(const Arguments& arguments, const TileOfC& tile)
      : arguments_(arguments), tile_(tile) {}

  static __device__ __forceinline__ void fetch(const Arguments& arguments,
                                               Stage& stage,
                                               gpu::Mbarrier* full,
                                               const TileOfC& tile,
                                               int reduction) {
    fetch_a<kMajorA>(stage, arguments.dy, full, tile.row, reduction);
    fetch_operand<kMajorB, kTileColumns>(stage.b, arguments.x, full, tile.column, reduction);
  }
  // 32 columns at a time. Where the tile leaves the weight TMA drops it. A half-warp writes 8
  // columns of four rows, which the swizzle puts into the same banks for a row and the next: odd
  // rows write what is 16 columns away instead, and the four have all banks.
  __device__ __forceinline__ void write(Outbox& outbox, const float (&sums)[kSums]) const {
    const int lane = gpu::lane_id();
    const bool odd = lane / 4 % 2 != 0;
#pragma unroll
    for (int chunk = 0; chunk < kTileColumns / kSlotColumnsF32; ++chunk) {
      const int column = tile_.column + chunk * kSlotColumnsF32;
      if (column >= arguments_.grouped.columns) {
        continue;
      }
      unsigned char* const slot = outbox.open();
#pragma unroll
      for (int i = 0; i < kSlotColumnsF32 / 4; ++i) {
        const int other = i ^ (kSlotColumnsF32 / 8);
        const int row = row_of_thread(i % 2);
        const int at = (odd ? other : i) / 2 * 8 + lane % 4 * 2;
        const std::uint32_t place =
            swizzled(static_cast<std::uint32_t>(row * kRowBytes + at * 4), Swizzle::bytes_128);
        const Pair own = pair_of(sums, chunk * (kSlotColumnsF32 / 4) + i);
        const Pair away = pair_of(sums, chunk * (kSlotColumnsF32 / 4) + other);
        // By value: of two places in sums the address would be chosen, and sums put into memory.
        *reinterpret_cast<Pair*>(slot + place) = {odd ? away.low : own.low,
                                                  odd ? away.high : own.high};
      }
      outbox.seal();
      outbox.send([&] {
        if (arguments_.grouped.write) {
          gpu::tma_store(arguments_.dweight, slot, column, tile_.row, tile_.expert);
        } else {
          gpu::tma_reduce_add(arguments_.dweight, slot, column, tile_.row, tile_.expert);
        }
      });
    }
  }

 private:
  static __device__ __forceinline__ Pair pair_of(const float (&sums)[kSums], int i) {
    return {sums[2 * i], sums[2 * i + 1]};
  }

  const Arguments& arguments_;
  const TileOfC& tile_;
};

template <Major kWeightMajor>
void launch_rows(const TensorView& c,
                 const TensorView& x,
                 const TensorView& weight,
                 const TensorView& offsets_E1,
                 Stream stream) {
  const std::int64_t columns = c.dim(1);
  // Boxes of what is contiguous in k hold all rows of a tile.
  const std::int64_t weight_rows = kWeightMajor == Major::k ? kTileColumns : kBoxRows;
  launch_product<RowsProduct<kWeightMajor>>({.grouped = over_rows(offsets_E1, columns, x.dim(1)),
                                             .x = rows_map(x, kConsumerRows),
                                             .weight = weight_map(weight, weight_rows),
                                             .out = rows_map(c, kConsumerRows),
                                             .c = rows_of(c)},
                                            max_clusters(x.dim(0), weight.dim(0), columns),
                                            stream);
}

}  // namespace

bool hopper_takes_grouped_matmul(std::int64_t R, std::int64_t E, std::int64_t N, std::int64_t K) {
  // A map needs an element in each dimension; tiles are counted in 32 bits, with room for a round.
  constexpr std::int64_t kMostTiles = std::int64_t{1} << 30;
  const auto tiles = [](std::int64_t rows, std::int64_t columns) {
    return ceil_div(rows, kTileRows) * tiles_across(columns);
  };
  return R > 0 && E > 0 && N > 0 && K > 0 &&
         tiles(R + E * kTileRows, std::max(N, K)) < kMostTiles && E * tiles(N, K) < kMostTiles &&
         this_device().compute_capability == 90;
}

void launch_grouped_forward_hopper(const GroupedMatmulForward& op, Stream stream) {
  launch_rows<Major::k>(op.y_RN, op.x_RK, op.weight_ENK, op.offsets_E1, stream);
}

void launch_grouped_dx_hopper(const GroupedMatmulBackward& op, Stream stream) {
  launch_rows<Major::mn>(op.dx_RK, op.dy_RN, op.weight_ENK, op.offsets_E1, stream);
}

void launch_grouped_dweight_hopper(const GroupedMatmulBackward& op, Stream stream) {
  const std::int64_t E = op.dweight_ENK.dim(0);
  const std::int64_t N = op.dweight_ENK.dim(1);
  const std::int64_t K = op.dweight_ENK.dim(2);
  constexpr std::int64_t kF32 = sizeof(float);
  const TensorMap dweight = make_tensor_map({.data = op.dweight_ENK.data,
                                             .dtype = DType::f32,
                                             .dims = {K, N, E},
                                             .stride_bytes = {K * kF32, N * K * kF32},
                                             .box = {kSlotColumnsF32, kConsumerRows, 1},
                                             .swizzle = Swizzle::bytes_128});
  launch_product<WeightProduct>(
      {.grouped = {.offsets_E1 = op.offsets_E1.as<std::int32_t>(),
                   .num_experts = static_cast<int>(E),
                   .clusters_across = static_cast<int>(clusters_across(K)),
                   .columns = static_cast<int>(K),
                   .weight_rows = static_cast<int>(N),
                   .write = op.weight_gradient == WeightGradient::write,
                   .reduction = 0},
       .dy = rows_map(op.dy_RN, kBoxRows),
       .x = rows_map(op.x_RK, kBoxRows),
       .dweight = dweight},
      E * ceil_div(N, kTileRows) * clusters_across(K),
      stream);
}

}  // namespace memphis::kernels::cuda
