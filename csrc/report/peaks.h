// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "csrc/report/run_history.h"

namespace memphis {

constexpr std::size_t kWindow = 64;
constexpr std::size_t kLeast = 8;  // values before one that is compared with them

inline double median_of(std::vector<double> values) {
  if (values.empty()) {
    return std::nan("");
  }
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The finite values of the window before each index: sorted, as it slides.
class SlidingWindow {
 public:
  void add(double value) {
    if (!std::isfinite(value)) {
      return;
    }
    if (order_.size() == kWindow) {
      sorted_.erase(std::lower_bound(sorted_.begin(), sorted_.end(), order_[next_]));
      order_[next_] = value;
    } else {
      order_.push_back(value);
    }
    next_ = (next_ + 1) % kWindow;
    sorted_.insert(std::upper_bound(sorted_.begin(), sorted_.end(), value), value);
  }
  bool ready() const { return sorted_.size() >= kLeast; }
  double median() const { return sorted_[sorted_.size() / 2]; }
  // Half of what lies between the quarters, in units of a normal deviation.
  double deviation() const {
    constexpr double kNormal = 0.7413;
    return kNormal * (sorted_[3 * sorted_.size() / 4] - sorted_[sorted_.size() / 4]);
  }

 private:
  std::vector<double> order_;
  std::vector<double> sorted_;
  std::size_t next_ = 0;
};

// Values that stand above those before them: how many runs of them, and the highest of all.
struct Peaks {
  std::int64_t count = 0;
  double step = 0;
  double value = 0;
  double before = 0;
  double share = 0;  // value over before
};

template <class Above>
Peaks find_peaks(const RunHistory& run, const std::vector<double>& values, const Above& above) {
  Peaks peaks;
  SlidingWindow window;
  bool within = false;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const bool is_above = std::isfinite(values[i]) && window.ready() && above(values[i], window);
    if (is_above) {
      peaks.count += within ? 0 : 1;
      const double share = values[i] / window.median();
      if (share > peaks.share) {
        peaks.step = run.steps[i];
        peaks.value = values[i];
        peaks.before = window.median();
        peaks.share = share;
      }
    }
    within = is_above;
    window.add(values[i]);
  }
  return peaks;
}

}  // namespace memphis
