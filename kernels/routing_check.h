// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/check.h"

// What ops on routed rows check of the operands that say where a row comes from and goes.
namespace memphis::kernels {

// offsets [E + 1] ascend from 0 to `num_rows`; on the GPU the host never sees their values.
inline void check_offsets(const OpCheck& check,
                          Stream stream,
                          const TensorView& offsets_E1,
                          std::int64_t num_experts,
                          std::int64_t num_rows) {
  check.tensor("offsets_E1", offsets_E1, {num_experts + 1}, DType::i32);
  if (stream.device == Device::cuda) {
    return;
  }
  const auto* offsets = offsets_E1.as<std::int32_t>();
  check.condition(offsets[0] == 0 && offsets[num_experts] == num_rows &&
                      std::is_sorted(offsets, offsets + num_experts + 1),
                  [&] {
                    return "offsets_E1 does not ascend from 0 to the " + std::to_string(num_rows) +
                           " rows; pass the offsets that permute_index wrote for these rows";
                  });
}

// One gate a row, at gates[source[row]].
inline void check_gates(const OpCheck& check,
                        const TensorView& gates_TK,
                        const TensorView& source_R,
                        std::int64_t num_rows,
                        DType dtype) {
  check.num_dims("gates_TK", gates_TK, 2);
  check.condition(gates_TK.num_elements() == num_rows, [&] {
    return "gates_TK is " + describe(gates_TK) + " for " + std::to_string(num_rows) +
           " rows (each row has one gate); T * K must be R";
  });
  check.tensor("gates_TK", gates_TK, {gates_TK.dim(0), gates_TK.dim(1)}, dtype);
  check.tensor("source_R", source_R, {num_rows}, DType::i32);
}

}  // namespace memphis::kernels
