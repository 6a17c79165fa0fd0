// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/outliers.h"

#include <algorithm>
#include <cmath>

namespace memphis {
namespace {

double median_of(std::vector<double> values) {
  if (values.empty()) {
    return 0;
  }
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) {
    return *middle;
  }
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

}  // namespace

Spread spread_of(std::span<const double> values) {
  Spread spread;
  spread.median = median_of({values.begin(), values.end()});
  std::vector<double> distances;
  for (const double value : values) {
    distances.push_back(std::abs(value - spread.median));
  }
  constexpr double kNormal = 1.4826;
  spread.deviation = kNormal * median_of(std::move(distances));
  return spread;
}

std::vector<std::size_t> outliers(std::span<const double> values, Side side, double least_share) {
  constexpr double kDeviations = 6;
  std::vector<std::size_t> found;
  // Of two, each is a deviation / 1.4826 away from their middle, and neither is found.
  const Spread spread = spread_of(values);
  const double limit = std::max(kDeviations * spread.deviation, least_share * spread.median);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double off = side == Side::above ? values[i] - spread.median : spread.median - values[i];
    if (off > limit) {
      found.push_back(i);
    }
  }
  return found;
}

}  // namespace memphis
