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

  double operator[](Stat stat) const {
    const auto index = static_cast<std::size_t>(stat) * static_cast<std::size_t>(kStatWidth);
    return stats_.dtype == DType::f64
               ? static_cast<const double*>(buffer_.data())[index]
               : static_cast<double>(static_cast<const float*>(buffer_.data())[index]);
  }

 private:
  TensorView stats_;
  PinnedBuffer buffer_;
};

}  // namespace memphis
