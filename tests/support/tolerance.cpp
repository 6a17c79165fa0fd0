// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tolerance.h"

#include <algorithm>
#include <cmath>

namespace memphis::test {

double rounding_unit(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 0x1p-53;
    case DType::f32:
      return 0x1p-24;
    case DType::bf16:
      return 0x1p-8;
    default:
      return 0;
  }
}

testing::AssertionResult close_to(const std::vector<double>& actual,
                                  const std::vector<double>& exact,
                                  const std::vector<double>& naive,
                                  DType dtype,
                                  std::int64_t row_length) {
  if (actual.size() != exact.size() || actual.size() != naive.size()) {
    return testing::AssertionFailure() << "sizes differ: actual " << actual.size() << ", exact "
                                       << exact.size() << ", naive " << naive.size();
  }
  if (actual.empty()) {
    return testing::AssertionSuccess();
  }
  const double unit = rounding_unit(dtype);
  double naive_error = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    naive_error = std::max(naive_error, std::abs(naive[i] - exact[i]));
  }
  // The smallest normal number stands for values that underflow.
  const double tiny = dtype == DType::f64 ? 1e-300 : 1.2e-38;

  std::size_t worst = 0;
  double worst_excess = -1;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double bound = 2 * naive_error + unit * std::abs(exact[i]) + tiny;
    const double error = std::abs(actual[i] - exact[i]);
    const double excess = std::isnan(error) ? INFINITY : error / bound;
    if (excess > worst_excess) {
      worst_excess = excess;
      worst = i;
    }
  }
  if (!(worst_excess <= 1)) {
    return testing::AssertionFailure()
           << "element " << worst << " (row " << static_cast<std::int64_t>(worst) / row_length
           << ", column " << static_cast<std::int64_t>(worst) % row_length << ") is "
           << actual[worst] << ", exact " << exact[worst] << ", naive " << naive[worst]
           << ", error " << std::abs(actual[worst] - exact[worst]) << ", bound "
           << 2 * naive_error + unit * std::abs(exact[worst]) + tiny;
  }

  const auto length = static_cast<std::size_t>(std::max<std::int64_t>(row_length, 1));
  const auto row_norm = [&](std::size_t begin, const auto& difference) {
    double sum = 0;
    for (std::size_t i = begin; i < std::min(begin + length, exact.size()); ++i) {
      sum += difference(i) * difference(i);
    }
    return std::sqrt(sum);
  };
  // Relative to the row's own size, so that small rows are held as tightly as large ones.
  double naive_relative = 0;
  for (std::size_t begin = 0; begin < exact.size(); begin += length) {
    const double size = row_norm(begin, [&](std::size_t i) { return exact[i]; });
    const double error = row_norm(begin, [&](std::size_t i) { return naive[i] - exact[i]; });
    if (size > tiny) {
      naive_relative = std::max(naive_relative, error / size);
    }
  }
  for (std::size_t begin = 0; begin < exact.size(); begin += length) {
    const double size = row_norm(begin, [&](std::size_t i) { return exact[i]; });
    const double error = row_norm(begin, [&](std::size_t i) { return actual[i] - exact[i]; });
    const double bound = (2 * naive_relative + unit) * size + tiny * static_cast<double>(length);
    if (!(error <= bound)) {
      return testing::AssertionFailure()
             << "row " << begin / length << " is off by norm " << error << ", bound " << bound
             << " (its own norm is " << size << ", the naive version's worst relative error "
             << naive_relative << ")";
    }
  }
  return testing::AssertionSuccess();
}

}  // namespace memphis::test
