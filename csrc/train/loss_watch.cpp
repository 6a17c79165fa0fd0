// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/loss_watch.h"

#include <algorithm>
#include <cmath>

#include <spdlog/fmt/fmt.h>

namespace memphis {

std::vector<double> LossWatch::State::window() const {
  std::vector<double> losses;
  for (std::size_t i = num_recent - std::min(num_recent, kWindow); i < num_recent; ++i) {
    losses.push_back(recent[i % kWindow]);
  }
  return losses;
}

void LossWatch::State::set_window(std::span<const double> losses) {
  num_recent = 0;
  for (const double loss : losses.last(std::min(losses.size(), kWindow))) {
    recent[num_recent++] = loss;
  }
}

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
  std::array<double, kWindow> sorted = state_.recent;
  std::nth_element(sorted.begin(), sorted.begin() + kWindow / 2, sorted.end());
  return sorted[kWindow / 2];
}

LossWatch::News LossWatch::observe(std::int64_t step, double loss) {
  if (state_.reference == 0) {
    state_.reference = loss;
  }
  if (exceeds(loss)) {
    state_.num_calm = 0;
    if (exploded()) {
      return News::none;
    }
    state_.exploded_at = step;
    return News::exploded;
  }
  if (exploded()) {
    if (++state_.num_calm < kCalm) {
      return News::none;
    }
    state_.exploded_at = 0;
    state_.num_recent = 0;
    return News::recovered;
  }
  state_.recent[state_.num_recent++ % kWindow] = loss;
  if (state_.num_recent >= kWindow) {
    state_.reference = std::min(state_.reference, median());
  }
  return News::none;
}

}  // namespace memphis
