// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/attention/attention.h"
#include "kernels/check.h"

namespace memphis::kernels {

// `heads` are `num_heads` of those that a buffer [num_tokens, any, width] of `dtype` has.
inline void check_heads(const OpCheck& check,
                        std::string_view name,
                        const HeadsView& heads,
                        std::int64_t num_tokens,
                        std::int64_t num_heads,
                        std::int64_t width,
                        DType dtype) {
  check.num_dims(name, heads.buffer_TCH, 3);
  check.tensor(name, heads.buffer_TCH, {num_tokens, heads.buffer_TCH.dim(1), width}, dtype);
  check.condition(heads.num_heads == num_heads && heads.first_head >= 0 &&
                      heads.first_head + heads.num_heads <= heads.buffer_TCH.dim(1),
                  [&] {
                    return std::string(name) + " is heads " + std::to_string(heads.first_head) +
                           " to " + std::to_string(heads.first_head + heads.num_heads) + " of " +
                           std::to_string(heads.buffer_TCH.dim(1)) + ", expected " +
                           std::to_string(num_heads) + " of them";
                  });
}

}  // namespace memphis::kernels
