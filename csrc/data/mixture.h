// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace memphis {

// Which source each sample of a mixture is of: a pure function of the sample's index, in constant
// time. Weights become whole parts of a period of at most kMaxPeriod samples, exactly where they are
// decimals or fractions with such a denominator; every window of `period()` samples has each source
// exactly its parts, and among the first n samples a source has its share of n to within less than
// one sample.
//
// Source  Tijdeman 1980, "The chairman assignment problem" (each prefix within 1 - 1 / (2k - 2) of
//         the shares of k sources, which no order betters).
class Mixture {
 public:
  static constexpr std::uint64_t kMaxPeriod = 65536;

  // Requires weights above 0, at most kMaxPeriod of them.
  explicit Mixture(std::span<const double> weights);

  struct Place {
    std::size_t source;
    std::uint64_t index;  // among the samples of the source
  };
  Place place(std::uint64_t sample) const;
  // Samples of `source` among the first `num_samples`.
  std::uint64_t count(std::size_t source, std::uint64_t num_samples) const;

  std::size_t num_sources() const { return parts_.size(); }
  std::uint64_t period() const { return order_.size(); }
  std::uint64_t parts(std::size_t source) const { return parts_[source]; }  // of a period

 private:
  std::vector<std::uint64_t> parts_;
  std::vector<std::uint32_t> order_;   // the source of each sample of a period
  std::vector<std::uint32_t> before_;  // samples of that source that come before it in the period
};

}  // namespace memphis
