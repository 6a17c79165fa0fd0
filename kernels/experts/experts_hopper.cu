// SPDX-License-Identifier: Apache-2.0
//
// The products of gate and up on sm_90a, forward and backward, with what is done to their results
// element by element: grouped_matmul_hopper_tile.h tells of the products themselves.
//   forward   columns of gate and of up are in the same thread: GeGLU and the expert gate
//   backward  the product gives the gradient of hidden, and GeGLU's derivative makes of it those of
//             gate and up; these come through the ring as further steps, and the results take their
//             place
// The gradient of an expert gate is a sum over a row, which lies in several tiles: each leaves its
// part, and they are added in order.
//
// Bound by the tensor cores. A tile's end takes 12 instructions an element forward and 24 backward,
// 4 and 6 % of the product's time at a reduction of 6144; passes of their own would move as much as
// 5 and 15 %.
#include "kernels/experts/experts_hopper.h"

#include <gpu_math.h>

#include "kernels/geglu/gelu_gpu.h"
#include "kernels/grouped_matmul/grouped_matmul_hopper_launch.h"
#include "kernels/grouped_matmul/grouped_matmul_hopper_tile.h"

namespace memphis::kernels::cuda {
namespace {

using namespace grouped;  // of the two headers

// ---- maps

// [E, 2F, D] as [E, 2, F, D]: a box has the same rows of gate and up, one behind the other.
TensorMap gate_up_weight_map(const TensorView& weight) {
  const std::int64_t F = weight.dim(1) / 2;
  const std::int64_t D = weight.dim(2);
  return make_tensor_map({.data = weight.data,
                          .dtype = DType::bf16,
                          .dims = {D, F, 2, weight.dim(0)},
                          .stride_bytes = {D * kBf16, F * D * kBf16, 2 * F * D * kBf16},
                          .box = {kDepth, kTileColumns / 2, 2, 1},
                          .swizzle = Swizzle::bytes_128});
}
// [R, 2F] as [2, R, F]: a box has the same columns of `halves`, gate and up or one of them.
TensorMap gate_up_map(const TensorView& gate_up, std::int64_t box_rows, std::int64_t halves) {
  const std::int64_t F = gate_up.dim(1) / 2;
  return make_tensor_map({.data = gate_up.data,
                          .dtype = DType::bf16,
                          .dims = {F, gate_up.dim(0), 2},
                          .stride_bytes = {2 * F * kBf16, F * kBf16},
                          .box = {kSlotColumns, box_rows, halves},
                          .swizzle = Swizzle::bytes_128});
}

// ---- what is common to both

__device__ __forceinline__ Pair unpack(std::uint32_t packed) {
  return {gpu::to_float(bf16::from_bits(static_cast<std::uint16_t>(packed))),
          gpu::to_float(bf16::from_bits(static_cast<std::uint16_t>(packed >> 16U)))};
}

// The expert gates of the thread's two rows; 0 where there is no row.
struct RowGates {
  float value[2];

  __device__ __forceinline__ RowGates(const float* gates,
                                      const std::int32_t* source,
                                      const TileOfC& tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_of_thread(half);
      value[half] = row < tile.num_rows ? gates[source[tile.row + row]] : 0.0F;
    }
  }
};

// ---- gate_up = x weight^T with hidden = gelu(gate) up times the expert gate: of a tile's columns the
// first half are gate's, the second up's

class GateUpProduct {
 public:
  struct Arguments {
    GroupedArguments grouped;
    TensorMap x;
    TensorMap weight;
    TensorMap gate_up;
    TensorMap hidden;
    Rows gate_up_rows[2];
    Rows hidden_rows;
    const float* gates;
    const std::int32_t* source;
  };
  static constexpr Major kMajorA = Major::k;
  static constexpr Major kMajorB = Major::k;
  static constexpr bool kOverRows = false;
  static constexpr int kLastSteps = 0;

  __device__ __forceinline__ GateUpProduct(const Arguments& arguments, const TileOfC& tile)
      : arguments_(arguments),
        tile_(tile),
        column_(tile.column / 2),
        gates_(arguments.gates, arguments.source, tile) {}

  static __device__ __forceinline__ void fetch(const Arguments& arguments,
                                               Stage& stage,
                                               gpu::Mbarrier* full,
                                               const TileOfC& tile,
                                               int reduction) {
    fetch_a<kMajorA>(stage, arguments.x, full, tile.row, reduction);
    gpu::tma_load(stage.b, arguments.weight, full, reduction, tile.column / 2, 0, tile.expert);
  }
  __device__ __forceinline__ void write(Outbox& outbox, const float (&sums)[kSums]) const {
#pragma unroll
    for (int chunk = 0; chunk < kTileColumns / 2 / kSlotColumns; ++chunk) {
      const int column = column_ + chunk * kSlotColumns;
      if (column < arguments_.hidden_rows.columns) {
        PackedColumns gate;
        PackedColumns up;
        pack(gate, sums, chunk * (kSlotColumns / 2));
        pack(up, sums, kSums / 2 + chunk * (kSlotColumns / 2));
        write_half(outbox, gate, column, 0);
        write_half(outbox, up, column, 1);
        PackedColumns hidden;
#pragma unroll
        for (int i = 0; i < kSlotColumns / 4; ++i) {
          // Of what was rounded, as the backward pass will see it.
          const Pair g = unpack(gate[i]);
          const Pair u = unpack(up[i]);
          const float scale = gates_.value[i % 2];
          hidden[i] = gpu::pack_bf16(gelu<bf16>(g.low).value * u.low * scale,
                                     gelu<bf16>(g.high).value * u.high * scale);
        }
        write_columns(outbox,
                      hidden,
                      arguments_.hidden_rows,
                      tile_.row,
                      tile_.num_rows,
                      column,
                      [&](const unsigned char* slot) {
                        gpu::tma_store(arguments_.hidden, slot, column, tile_.row);
                      });
      }
    }
  }

 private:
  __device__ __forceinline__ void write_half(Outbox& outbox,
                                             const PackedColumns& packed,
                                             int column,
                                             int half) const {
    write_columns(outbox,
                  packed,
                  arguments_.gate_up_rows[half],
                  tile_.row,
                  tile_.num_rows,
                  column,
                  [&](const unsigned char* slot) {
                    gpu::tma_store(arguments_.gate_up, slot, column, tile_.row, half);
                  });
  }

  const Arguments& arguments_;
  const TileOfC& tile_;
  int column_;
  RowGates gates_;
};

// ---- dhidden = dy weight, and of it dgate and dup, in the places of gate and up

class GateUpGradient {
 public:
  struct Arguments {
    GroupedArguments grouped;
    TensorMap dy;
    TensorMap weight;
    TensorMap gate_up;
    TensorMap dgate_up;
    Rows dgate_up_rows[2];
    const float* gates;
    const std::int32_t* source;
    float* partial_CR;  // the part of each gate's gradient that a tile's columns make
    std::int64_t R;
  };
  static constexpr Major kMajorA = Major::k;
  static constexpr Major kMajorB = Major::mn;
  static constexpr bool kOverRows = false;
  static constexpr int kLastSteps = kTileColumns / kSlotColumns;

  __device__ __forceinline__ GateUpGradient(const Arguments& arguments, const TileOfC& tile)
      : arguments_(arguments), tile_(tile), gates_(arguments.gates, arguments.source, tile) {}

  static __device__ __forceinline__ void fetch(const Arguments& arguments,
                                               Stage& stage,
                                               gpu::Mbarrier* full,
                                               const TileOfC& tile,
                                               int reduction) {
    fetch_a<kMajorA>(stage, arguments.dy, full, tile.row, reduction);
    fetch_operand<kMajorB, kTileColumns>(
        stage.b, arguments.weight, full, tile.column, reduction, tile.expert);
  }
  // 64 columns of gate, then of up, of all rows of the tile.
  static __device__ __forceinline__ void fetch_last(const Arguments& arguments,
                                                    Stage& stage,
                                                    gpu::Mbarrier* full,
                                                    const TileOfC& tile,
                                                    int step) {
    gpu::tma_load(stage.b, arguments.gate_up, full, tile.column + step * kSlotColumns, tile.row, 0);
  }
  // Gate and up of the consumer's rows become dgate and dup.
  __device__ __forceinline__ void replace(Stage& stage,
                                          const float (&sums)[kSums],
                                          int step,
                                          int consumer) {
    unsigned char* const gate_rows = rows_of_half(stage, consumer, 0);
    unsigned char* const up_rows = rows_of_half(stage, consumer, 1);
#pragma unroll
    for (int i = 0; i < kSlotColumns / 16; ++i) {
      std::uint32_t gates[4];
      std::uint32_t ups[4];
      gpu::load_matrix_x4(gates, gate_rows + matrix_place(i));
      gpu::load_matrix_x4(ups, up_rows + matrix_place(i));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int sum = step * (kSlotColumns / 2) + 8 * i + 2 * j;
        // Rounded as dx is.
        const Pair dy = unpack(gpu::pack_bf16(sums[sum], sums[sum + 1]));
        const Pair gate = unpack(gates[j]);
        const Pair up = unpack(ups[j]);
        const Gelu low = gelu<bf16>(gate.low);
        const Gelu high = gelu<bf16>(gate.high);
        const float scale = gates_.value[j % 2];
        sum_[j % 2] += dy.low * low.value * up.low;
        sum_[j % 2] += dy.high * high.value * up.high;
        gates[j] = gpu::pack_bf16(scale * dy.low * up.low * low.derivative,
                                  scale * dy.high * up.high * high.derivative);
        ups[j] = gpu::pack_bf16(scale * dy.low * low.value, scale * dy.high * high.value);
      }
      gpu::store_matrix_x4(gate_rows + matrix_place(i), gates);
      gpu::store_matrix_x4(up_rows + matrix_place(i), ups);
    }
  }
  __device__ __forceinline__ void send(const Outbox& outbox, Stage& stage, int step, int consumer) {
    const int column = tile_.column + step * kSlotColumns;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (column < arguments_.dgate_up_rows[half].columns) {
        send_columns(outbox,
                     rows_of_half(stage, consumer, half),
                     arguments_.dgate_up_rows[half],
                     tile_.row,
                     tile_.num_rows,
                     column,
                     [&](const unsigned char* written) {
                       gpu::tma_store(arguments_.dgate_up, written, column, tile_.row, half);
                     });
      }
    }
    if (step == kLastSteps - 1) {
      write_sums();
    }
  }

 private:
  static __device__ __forceinline__ unsigned char* rows_of_half(Stage& stage,
                                                                int consumer,
                                                                int half) {
    return reinterpret_cast<unsigned char*>(stage.b) +
           (half * kTileRows + consumer * kConsumerRows) * kRowBytes;
  }
  __device__ __forceinline__ void write_sums() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sum_[half];
      sum += gpu::shuffle_xor(sum, 1);
      sum += gpu::shuffle_xor(sum, 2);
      const int row = row_of_thread(half);
      if (gpu::lane_id() % 4 == 0 && row < tile_.num_rows) {
        arguments_.partial_CR[tile_.column / kTileColumns * arguments_.R + tile_.row + row] = sum;
      }
    }
  }

  const Arguments& arguments_;
  const TileOfC& tile_;
  RowGates gates_;
  float sum_[2] = {0.0F, 0.0F};
};

constexpr int kSumThreads = 256;

// grid: R rows / kSumThreads, block: kSumThreads
__global__ void gate_gradient_kernel(float* dgates,
                                     const float* __restrict__ partial_CR,
                                     const std::int32_t* __restrict__ source,
                                     std::int64_t R,
                                     int num_parts) {
  const std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (r >= R) {
    return;
  }
  float sum = 0.0F;
  for (int part = 0; part < num_parts; ++part) {
    sum += partial_CR[part * R + r];
  }
  dgates[source[r]] = sum;
}

Rows half_of(const TensorView& gate_up, std::int64_t half) {
  const std::int64_t F = gate_up.dim(1) / 2;
  return {.data = gate_up.as<bf16>() + half * F, .stride = 2 * F, .columns = static_cast<int>(F)};
}

}  // namespace

void launch_gate_up_forward_hopper(const ExpertsForward& op, Stream stream) {
  const std::int64_t columns = op.gate_up_R2F.dim(1);
  // A tile has half of its columns of gate: tiles across are those of both, each rounded up.
  const std::int64_t in_tiles = ceil_div(columns / 2, kTileColumns / 2) * kTileColumns;
  launch_product<GateUpProduct>(
      {.grouped = over_rows(op.offsets_E1, in_tiles, op.x_RD.dim(1)),
       .x = rows_map(op.x_RD, kConsumerRows),
       .weight = gate_up_weight_map(op.gate_up_weight_EFD),
       .gate_up = gate_up_map(op.gate_up_R2F, kConsumerRows, 1),
       .hidden = rows_map(op.hidden_RF, kConsumerRows),
       .gate_up_rows = {half_of(op.gate_up_R2F, 0), half_of(op.gate_up_R2F, 1)},
       .hidden_rows = rows_of(op.hidden_RF),
       .gates = op.gates_TK.as<float>(),
       .source = op.source_R.as<std::int32_t>()},
      max_clusters(op.x_RD.dim(0), op.gate_up_weight_EFD.dim(0), in_tiles),
      stream);
}

void launch_gate_up_backward_hopper(const ExpertsBackward& op, Stream stream) {
  const std::int64_t R = op.dy_RD.dim(0);
  const std::int64_t F = op.hidden_RF.dim(1);
  auto* const partial_CR = static_cast<float*>(op.dhidden_RF.data);
  launch_product<GateUpGradient>(
      {.grouped = over_rows(op.offsets_E1, F, op.dy_RD.dim(1)),
       .dy = rows_map(op.dy_RD, kConsumerRows),
       .weight = weight_map(op.down_weight_EDF, kBoxRows),
       .gate_up = gate_up_map(op.gate_up_R2F, kTileRows, 2),
       .dgate_up = gate_up_map(op.gate_up_R2F, kConsumerRows, 1),
       .dgate_up_rows = {half_of(op.gate_up_R2F, 0), half_of(op.gate_up_R2F, 1)},
       .gates = op.gates_TK.as<float>(),
       .source = op.source_R.as<std::int32_t>(),
       .partial_CR = partial_CR,
       .R = R},
      max_clusters(R, op.down_weight_EDF.dim(0), F),
      stream);
  launch(gate_gradient_kernel,
         {.grid = {.x = ceil_div(R, kSumThreads)}, .block = {.x = kSumThreads}, .stream = stream},
         op.dgates_TK.as<float>(),
         static_cast<const float*>(partial_CR),
         static_cast<const std::int32_t*>(op.source_R.as<std::int32_t>()),
         R,
         static_cast<int>(tiles_across(F)));
}

}  // namespace memphis::kernels::cuda
