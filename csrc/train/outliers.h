// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace memphis {

// How values of ranks, times or rates, spread about their middle. One rank that is far off moves
// neither number: the median, and the median of the distances from it, scaled so that it is the
// standard deviation where values are normally distributed (times 1.4826).
struct Spread {
  double median = 0;
  double deviation = 0;
};
Spread spread_of(std::span<const double> values);

enum class Side : bool { below, above };

// Which values lie on that side of the median by more than six deviations and by more than
// `least_share` of it, a difference that is worth a word. None of fewer than three: two that differ do
// not say which is at fault.
std::vector<std::size_t> outliers(std::span<const double> values, Side side, double least_share);

}  // namespace memphis
