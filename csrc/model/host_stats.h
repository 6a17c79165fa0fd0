// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/device.h"
#include "csrc/plan/activations.h"

namespace memphis {

// SharedActivations::stats, read by the host.
class HostStats {
 public:
  explicit HostStats(const TensorView& stats)
      : stats_(stats), buffer_(stats.bytes(), stats.device) {}

  // Enqueues the copy; synchronise the stream before reading.
  void copy(Stream stream) { device_copy(buffer_.data(), stats_.data, stats_.bytes(), stream); }

  // Over all layers where each has one.
  double operator[](Stat stat) const {
    const Range rows = stat_rows(stat, stats_);
    double sum = 0;
    for (std::int64_t row = rows.begin; row < rows.end(); ++row) {
      const auto index = static_cast<std::size_t>(row * kStatWidth);
      sum += stats_.dtype == DType::f64
                 ? static_cast<const double*>(buffer_.data())[index]
                 : static_cast<double>(static_cast<const float*>(buffer_.data())[index]);
    }
    return sum;
  }

 private:
  TensorView stats_;
  PinnedBuffer buffer_;
};

}  // namespace memphis
