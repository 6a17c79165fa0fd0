// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/dtype.h"

namespace memphis::test {

// Compares an op's result with the exact one, within a tolerance that is computed and not chosen.
//
// `exact` is the double-precision naive result, `naive` the result of the same naive code computing
// and storing in `dtype`. The bound on every element is
//   2 * max over the tensor of |naive - exact|  +  the rounding of the exact value to dtype,
// and each row's error norm is held to twice the worst row of naive, plus its rounding, so that one
// wrong row of small values cannot hide behind a large one. NaN never passes. The message names the
// worst index, both values and the bound.
//
// Source: the rule of FlashAttention-3's tests (at most twice the error of the naive version).
testing::AssertionResult close_to(const std::vector<double>& actual,
                                  const std::vector<double>& exact,
                                  const std::vector<double>& naive,
                                  DType dtype,
                                  std::int64_t row_length);

// The unit of rounding of a dtype: half the spacing of 1.0.
double rounding_unit(DType dtype);

}  // namespace memphis::test
