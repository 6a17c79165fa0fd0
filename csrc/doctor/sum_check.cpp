// SPDX-License-Identifier: Apache-2.0
#include "csrc/doctor/sum_check.h"

#include <algorithm>

#include "csrc/core/error.h"

namespace memphis::doctor {
namespace {

constexpr std::int64_t kModulus = 1000003;

// The sum over ranks r of (first + r) modulo kModulus, where first is less than that and so is r:
// an arithmetic series, but for the terms that have wrapped, each of which is less by the modulus.
std::int64_t sum_over_ranks(std::int64_t first, std::int64_t num_ranks) {
  const std::int64_t num_wrapped = std::max<std::int64_t>(first + num_ranks - kModulus, 0);
  return num_ranks * first + num_ranks * (num_ranks - 1) / 2 - num_wrapped * kModulus;
}

}  // namespace

void fill_for_sum(std::span<std::int32_t> values, int rank, int round) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<std::int32_t>((static_cast<std::int64_t>(i) + rank + round) % kModulus);
  }
}

std::optional<std::size_t> first_wrong_sum(std::span<const std::int32_t> sums,
                                           int num_ranks,
                                           int round) {
  require(num_ranks <= kModulus, "no rank wraps twice");
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const std::int64_t first = (static_cast<std::int64_t>(i) + round) % kModulus;
    if (sums[i] != static_cast<std::int32_t>(sum_over_ranks(first, num_ranks))) {
      return i;
    }
  }
  return std::nullopt;
}

}  // namespace memphis::doctor
