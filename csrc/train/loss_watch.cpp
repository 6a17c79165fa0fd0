// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/loss_watch.h"

#include <algorithm>
#include <cmath>

#include <spdlog/fmt/fmt.h>

namespace memphis {

LossWatch::LossWatch(std::int64_t vocab_size, const State& state)
    : vocab_size_(vocab_size), state_(state) {}

double LossWatch::chance() const {
  return std::log(static_cast<double>(vocab_size_));
}

double LossWatch::limit() const {
  return std::max(chance(), 2 * state_.reference);
}

bool LossWatch::exceeds(double loss) const {
  return !(loss <= limit());
}

std::string LossWatch::describe_limit() const {
  return limit() > chance()
             ? fmt::format("{:.2f}, twice the lowest level that this run has held", limit())
             : fmt::format("{:.2f}, what a guess among {} tokens has", limit(), vocab_size_);
}

double LossWatch::median() const {
  std::array<double, kWindow> sorted = recent_;
  std::nth_element(sorted.begin(), sorted.begin() + kWindow / 2, sorted.end());
  return sorted[kWindow / 2];
}

LossWatch::News LossWatch::observe(std::int64_t step, double loss) {
  if (state_.reference == 0) {
    state_.reference = loss;
  }
  if (exceeds(loss)) {
    num_calm_ = 0;
    if (exploded()) {
      return News::none;
    }
    state_.exploded_at = step;
    return News::exploded;
  }
  if (exploded()) {
    if (++num_calm_ < kCalm) {
      return News::none;
    }
    state_.exploded_at = 0;
    num_recent_ = 0;
    return News::recovered;
  }
  recent_[num_recent_++ % kWindow] = loss;
  if (num_recent_ >= kWindow) {
    state_.reference = std::min(state_.reference, median());
  }
  return News::none;
}

}  // namespace memphis
