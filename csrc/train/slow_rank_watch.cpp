// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/slow_rank_watch.h"

#include <algorithm>

namespace memphis {

std::vector<SlowRankWatch::News> SlowRankWatch::observe(std::span<const double> seconds_of_ranks) {
  looks_.resize(seconds_of_ranks.size());
  const std::vector<std::size_t> slow = outliers(seconds_of_ranks, Side::above, kWorthAWord);
  const Spread spread = spread_of(seconds_of_ranks);
  std::vector<News> news;
  for (std::size_t rank = 0; rank < seconds_of_ranks.size(); ++rank) {
    const bool is_slow = std::find(slow.begin(), slow.end(), rank) != slow.end();
    const bool was_said = looks_[rank] >= kLooks;
    looks_[rank] = is_slow ? looks_[rank] + 1 : 0;
    if (was_said != (looks_[rank] >= kLooks)) {
      news.push_back({.rank = static_cast<int>(rank),
                      .seconds = seconds_of_ranks[rank],
                      .spread = spread,
                      .slow = is_slow});
    }
  }
  return news;
}

}  // namespace memphis
