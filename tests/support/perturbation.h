// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

#include "csrc/core/dtype.h"
#include "tests/support/tolerance.h"

namespace memphis::test {

// In a tensor of few elements the naive result may be exact by luck, and close_to's bound is then
// nothing. What the naive code makes of inputs that are off by one rounding of the accumulation
// dtype is as good a result, and never lucky in the same place:
//   close_to(actual, exact, farther(exact, naive(inputs), naive(perturbed inputs)), ...)

// `values` moved by one rounding of sums over `dtype`, up and down in turn.
inline std::vector<double> perturbed(DType dtype, std::vector<double> values) {
  const double unit = rounding_unit(accumulation_dtype(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] *= i % 2 == 0 ? 1.0 + 2.0 * unit : 1.0 - 2.0 * unit;
  }
  return values;
}

// Of each element of `a` and `b` the one that is farther from `exact`.
inline std::vector<double> farther(const std::vector<double>& exact,
                                   std::vector<double> a,
                                   const std::vector<double>& b) {
  for (std::size_t i = 0; i < exact.size(); ++i) {
    if (std::abs(b[i] - exact[i]) > std::abs(a[i] - exact[i])) {
      a[i] = b[i];
    }
  }
  return a;
}

}  // namespace memphis::test
