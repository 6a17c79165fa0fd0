// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope/rope.h"

#include <cmath>
#include <string>
#include <vector>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

constexpr std::int64_t kTokensPerChunk = 64;

template <class A>
std::vector<A> computed_table(std::int64_t num_positions, std::int64_t width, double theta) {
  std::vector<A> table(static_cast<std::size_t>(num_positions * width));
  for (std::int64_t j = 0; j < width / 2; ++j) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(width));
    for (std::int64_t p = 0; p < num_positions; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      const auto at = static_cast<std::size_t>(p * width + 2 * j);
      table[at] = static_cast<A>(std::cos(angle));
      table[at + 1] = static_cast<A>(std::sin(angle));
    }
  }
  return table;
}

template <class A>
void fill_table(const RopeTable& op, Stream stream) {
  const std::vector<A> table = computed_table<A>(op.table_SH.dim(0), op.table_SH.dim(1), op.theta);
  device_copy(op.table_SH.data, table.data(), op.table_SH.bytes(), stream);
  synchronize(stream);  // `table` ends here
}

// kSign is 1 for the rotation and -1 for its inverse, which is its transpose.
template <class T, int kSign>
void rotate(const TensorView& x_TCH,
            const TensorView& table_SH,
            const TensorView& position_T,
            std::int64_t num_rotated_heads) {
  using A = Accumulator<T>;
  T* const x = x_TCH.as<T>();
  const A* const table = table_SH.as<A>();
  const std::int32_t* const position = position_T.as<std::int32_t>();
  const std::int64_t num_heads = x_TCH.dim(1);
  const std::int64_t width = x_TCH.dim(2);
  const std::int64_t half = width / 2;
  const std::int64_t num_positions = table_SH.dim(0);
  parallel_ranges(x_TCH.dim(0), kTokensPerChunk, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      if (position[t] < 0 || position[t] >= num_positions) {
        throw ContractError("rope: position " + std::to_string(position[t]) + " of token " +
                            std::to_string(t) + " has no row (the table has " +
                            std::to_string(num_positions) + "); build it for longer sequences");
      }
      const A* const row = table + position[t] * width;
      for (std::int64_t head = 0; head < num_rotated_heads; ++head) {
        T* const x1 = x + (t * num_heads + head) * width;
        T* const x2 = x1 + half;
#pragma omp simd
        for (std::int64_t j = 0; j < half; ++j) {
          const A cosine = row[2 * j];
          const A sine = static_cast<A>(kSign) * row[2 * j + 1];
          const auto first = static_cast<A>(x1[j]);
          const auto second = static_cast<A>(x2[j]);
          x1[j] = static_cast<T>(first * cosine - second * sine);
          x2[j] = static_cast<T>(second * cosine + first * sine);
        }
      }
    }
  });
}

void check_operands(const OpCheck& check,
                    std::string_view name,
                    const TensorView& x_TCH,
                    const TensorView& table_SH,
                    const TensorView& position_T,
                    std::int64_t num_rotated_heads) {
  check.num_dims(name, x_TCH, 3);
  check.num_dims("table_SH", table_SH, 2);
  const std::int64_t T = x_TCH.dim(0);
  const std::int64_t C = x_TCH.dim(1);
  const std::int64_t H = x_TCH.dim(2);
  check.float_dtype(name, x_TCH.dtype);
  check.condition(H % 2 == 0, [&] {
    return "a head is " + std::to_string(H) +
           " wide (its halves rotate against each other); use an even width";
  });
  check.condition(num_rotated_heads >= 0 && num_rotated_heads <= C, [&] {
    return "num_rotated_heads is " + std::to_string(num_rotated_heads) + " of " +
           std::to_string(C) + " heads";
  });
  check.tensor(name, x_TCH, {T, C, H}, x_TCH.dtype);
  check.tensor("table_SH", table_SH, {table_SH.dim(0), H}, accumulation_dtype(x_TCH.dtype));
  check.tensor("position_T", position_T, {T}, DType::i32);
}

}  // namespace

void rope_table(const RopeTable& op, Stream stream) {
  const OpCheck check("rope_table", stream);
  check.num_dims("table_SH", op.table_SH, 2);
  const std::int64_t H = op.table_SH.dim(1);
  check.condition(H % 2 == 0, [&] {
    return "a head is " + std::to_string(H) +
           " wide (its halves rotate against each other); use an even width";
  });
  const DType dtype = op.table_SH.dtype == DType::f64 ? DType::f64 : DType::f32;
  check.tensor("table_SH", op.table_SH, {op.table_SH.dim(0), H}, dtype);
  if (dtype == DType::f64) {
    fill_table<double>(op, stream);
  } else {
    fill_table<float>(op, stream);
  }
}

void rope_forward(const RopeForward& op, Stream stream) {
  const OpCheck check("rope_forward", stream);
  check_operands(check, "x_TCH", op.x_TCH, op.table_SH, op.position_T, op.num_rotated_heads);
  if (stream.device == Device::cuda) {
    return cuda::rope_forward(op, stream);
  }
  visit_float(op.x_TCH.dtype, [&]<class T>() {
    rotate<T, 1>(op.x_TCH, op.table_SH, op.position_T, op.num_rotated_heads);
  });
}

void rope_backward(const RopeBackward& op, Stream stream) {
  const OpCheck check("rope_backward", stream);
  check_operands(check, "dx_TCH", op.dx_TCH, op.table_SH, op.position_T, op.num_rotated_heads);
  if (stream.device == Device::cuda) {
    return cuda::rope_backward(op, stream);
  }
  visit_float(op.dx_TCH.dtype, [&]<class T>() {
    rotate<T, -1>(op.dx_TCH, op.table_SH, op.position_T, op.num_rotated_heads);
  });
}

}  // namespace memphis::kernels
