// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/mixture.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csrc/core/error.h"

namespace memphis {
namespace {

// Whole parts of `period` that are the shares but for rounding; empty where they are not.
std::vector<std::uint64_t> exact_parts(std::span<const double> shares, std::uint64_t period) {
  // Weights are decimals of a config, whose sums and quotients are off by a few units of rounding.
  constexpr double kRounding = 1e-9;
  std::vector<std::uint64_t> parts;
  for (const double share : shares) {
    const double exact = share * static_cast<double>(period);
    const double whole = std::round(exact);
    if (whole < 1 || std::abs(exact - whole) > kRounding * std::max(1.0, exact)) {
      return {};
    }
    parts.push_back(static_cast<std::uint64_t>(whole));
  }
  return parts;
}

// The nearest parts of the longest period, each at least one: by largest remainders.
std::vector<std::uint64_t> nearest_parts(std::span<const double> shares) {
  constexpr std::uint64_t kPeriod = Mixture::kMaxPeriod;
  std::vector<std::uint64_t> parts;
  std::vector<std::pair<double, std::size_t>> remainders;
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < shares.size(); ++i) {
    const double exact = shares[i] * static_cast<double>(kPeriod);
    const auto part = std::max<std::uint64_t>(1, static_cast<std::uint64_t>(exact));
    parts.push_back(part);
    sum += part;
    remainders.emplace_back(exact - static_cast<double>(part), i);
  }
  std::stable_sort(remainders.begin(), remainders.end(), [](const auto& a, const auto& b) {
    return a.first > b.first;
  });
  for (std::size_t i = 0; sum < kPeriod; i = (i + 1) % remainders.size(), ++sum) {
    ++parts[remainders[i].second];
  }
  for (; sum > kPeriod; --sum) {  // those of less than one part were given one
    --*std::max_element(parts.begin(), parts.end());
  }
  return parts;
}

std::vector<std::uint64_t> parts_of(std::span<const double> weights) {
  require(!weights.empty() && weights.size() <= Mixture::kMaxPeriod,
          "a mixture has a source, and no more than samples in its period");
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> shares;
  for (const double weight : weights) {
    require(weight > 0 && std::isfinite(weight / sum), "a source has a weight above 0");
    shares.push_back(weight / sum);
  }
  for (std::uint64_t period = weights.size(); period <= Mixture::kMaxPeriod; ++period) {
    std::vector<std::uint64_t> parts = exact_parts(shares, period);
    if (!parts.empty() && std::accumulate(parts.begin(), parts.end(), std::uint64_t{0}) == period) {
      return parts;
    }
  }
  return nearest_parts(shares);
}

}  // namespace

Mixture::Mixture(std::span<const double> weights) : parts_(parts_of(weights)) {
  const auto num_sources = static_cast<std::int64_t>(parts_.size());
  const auto period =
      static_cast<std::int64_t>(std::accumulate(parts_.begin(), parts_.end(), std::uint64_t{0}));
  // A source may be chosen for sample n, counted from 1, once it is owed 1 / (2k - 2) samples, and of
  // those that may the one is that would soonest be owed 1 - 1 / (2k - 2). In whole numbers: what is
  // owed is times the period, and these bounds are times 2k - 2.
  const std::int64_t scale = std::max<std::int64_t>(2 * num_sources - 2, 1);
  std::vector<std::int64_t> chosen(parts_.size());
  for (std::int64_t n = 1; n <= period; ++n) {
    std::size_t best = parts_.size();
    double best_time = 0;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const auto part = static_cast<std::int64_t>(parts_[i]);
      const std::int64_t owed = scale * (part * n - chosen[i] * period);
      if (num_sources > 1 && owed < period) {
        continue;
      }
      const double time =
          static_cast<double>((scale - 1) * period - owed) / static_cast<double>(part);
      if (best == parts_.size() || time < best_time) {
        best = i;
        best_time = time;
      }
    }
    require(best < parts_.size(), "a source is owed a sample");
    order_.push_back(static_cast<std::uint32_t>(best));
    before_.push_back(static_cast<std::uint32_t>(chosen[best]));
    ++chosen[best];
  }
}

Mixture::Place Mixture::place(std::uint64_t sample) const {
  const std::uint64_t round = sample / period();
  const auto at = static_cast<std::size_t>(sample % period());
  const std::size_t source = order_[at];
  return {.source = source, .index = round * parts_[source] + before_[at]};
}

std::uint64_t Mixture::count(std::size_t source, std::uint64_t num_samples) const {
  const std::uint64_t round = num_samples / period();
  const auto end = order_.begin() + static_cast<std::ptrdiff_t>(num_samples % period());
  return round * parts_[source] + static_cast<std::uint64_t>(std::count(
                                      order_.begin(), end, static_cast<std::uint32_t>(source)));
}

}  // namespace memphis
