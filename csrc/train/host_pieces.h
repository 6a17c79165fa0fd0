// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "csrc/core/device.h"
#include "csrc/core/error.h"
#include "csrc/core/tensor.h"

namespace memphis {

// The bytes of tensors for a reader on the host, wherever they lie: the CPU's as they are, a GPU's
// through `bytes` of page-locked memory, whole elements of any type. ContractError where tensors of
// a GPU are to pass through none.
class HostPieces {
 public:
  HostPieces(Stream stream, std::size_t bytes) : stream_(stream), staging_(bytes, stream.device) {}

  std::size_t bytes() const { return staging_.bytes(); }

  // Calls visit(std::span<const std::byte>), front to back. All pieces but the last have the same
  // number of whole elements.
  template <class Visit>
  void for_each(const TensorView& view, const Visit& visit) {
    const auto* const bytes = static_cast<const std::byte*>(view.data);
    if (view.device == Device::cpu) {
      visit(std::span<const std::byte>(bytes, view.bytes()));
      return;
    }
    require(staging_.bytes() > 0,
            "what is compared on a GPU has memory of the host to pass through");
    for (std::size_t at = 0; at < view.bytes(); at += staging_.bytes()) {
      const std::size_t count = std::min(staging_.bytes(), view.bytes() - at);
      device_copy(staging_.data(), bytes + at, count, stream_);
      synchronize(stream_);
      visit(std::span(static_cast<const std::byte*>(staging_.data()), count));
    }
  }

 private:
  Stream stream_;
  PinnedBuffer staging_;
};

}  // namespace memphis
