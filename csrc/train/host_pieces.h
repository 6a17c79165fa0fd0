// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "csrc/core/device.h"
#include "csrc/core/tensor.h"

namespace memphis {

// The bytes of tensors for a reader on the host, wherever they lie: the CPU's as they are, a GPU's
// through memory of its own, which is there from the first one on.
class HostPieces {
 public:
  explicit HostPieces(Stream stream) : stream_(stream) {}

  // Calls visit(std::span<const std::byte>), front to back. All pieces but the last have the same
  // number of whole elements.
  template <class Visit>
  void for_each(const TensorView& view, const Visit& visit) {
    const auto* const bytes = static_cast<const std::byte*>(view.data);
    if (view.device == Device::cpu) {
      visit(std::span<const std::byte>(bytes, view.bytes()));
      return;
    }
    staging_.resize(kStagingBytes);
    for (std::size_t at = 0; at < view.bytes(); at += kStagingBytes) {
      const std::size_t count = std::min(kStagingBytes, view.bytes() - at);
      device_copy(staging_.data(), bytes + at, count, stream_);
      synchronize(stream_);
      visit(std::span<const std::byte>(staging_.data(), count));
    }
  }

 private:
  static constexpr std::size_t kStagingBytes = std::size_t{16} << 20;

  Stream stream_;
  std::vector<std::byte> staging_;
};

}  // namespace memphis
