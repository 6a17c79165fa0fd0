// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "csrc/train/outliers.h"

namespace memphis {

// Tells a rank that is slow by its own work: above the median of all by six deviations and 15 %, in
// three looks in a row. Who waits for it has worked as long as ever, and is not named.
class SlowRankWatch {
 public:
  struct News {
    int rank = 0;
    double seconds = 0;  // of its own work in a step
    Spread spread;       // of all ranks'
    bool slow = false;   // or no longer
  };
  // The same of the same looks, on any rank.
  std::vector<News> observe(std::span<const double> seconds_of_ranks);

 private:
  static constexpr int kLooks = 3;
  static constexpr double kWorthAWord = 0.15;

  std::vector<int> looks_;  // in a row, by rank
};

}  // namespace memphis
