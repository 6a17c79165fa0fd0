// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <span>

#include "csrc/core/device.h"
#include "csrc/core/error.h"
#include "csrc/core/tensor.h"

namespace memphis {

// The bytes of tensors for a reader on the host, wherever they lie: the CPU's as they are, a GPU's
// through `bytes` of page-locked memory, in two pieces, of which one is read while the next one is
// on its way. ContractError where tensors of a GPU are to pass through none.
//
// A GPU copies on a stream of this, beside what else it does: nothing under way writes the tensors.
class HostPieces {
 public:
  // Pieces but a tensor's last are multiples of `grain_bytes`, whole elements of any type.
  HostPieces(Device device, std::size_t bytes, std::size_t grain_bytes)
      : grain_bytes_(grain_bytes),
        stream_(device),
        buffers_{PinnedBuffer(bytes / 2, device), PinnedBuffer(bytes / 2, device)},
        arrived_{Event(device, Event::Use::ordering), Event(device, Event::Use::ordering)} {}

  // Calls visit(std::span<const std::byte>), front to back.
  template <class Visit>
  void for_each(const TensorView& view, const Visit& visit) {
    walk<1>({view},
            [&](const std::array<std::span<const std::byte>, 1>& piece) { visit(piece[0]); });
  }

  // The same of two tensors that have as many elements: visit(piece, beside), which have as many.
  // The grain is the first one's.
  template <class Visit>
  void for_each_beside(const TensorView& view, const TensorView& beside, const Visit& visit) {
    require(view.num_elements() == beside.num_elements() && view.device == beside.device,
            "tensors that are read beside each other have as many elements, in one place");
    walk<2>({view, beside}, [&](const std::array<std::span<const std::byte>, 2>& piece) {
      visit(piece[0], piece[1]);
    });
  }

 private:
  template <std::size_t N, class Visit>
  void walk(const std::array<TensorView, N>& views, const Visit& visit) {
    std::array<std::span<const std::byte>, N> piece;
    const auto num_elements = static_cast<std::size_t>(views[0].num_elements());
    if (views[0].device == Device::cpu) {
      for (std::size_t i = 0; i < N; ++i) {
        piece[i] = {static_cast<const std::byte*>(views[i].data), views[i].bytes()};
      }
      visit(piece);
      return;
    }
    // An element of each view, one behind the other.
    std::size_t stride = 0;
    for (const TensorView& view : views) {
      stride += size_of(view.dtype);
    }
    const std::size_t grain = grain_bytes_ / size_of(views[0].dtype);
    const std::size_t most = buffers_[0].bytes() / stride / grain * grain;
    require(most > 0, "what is compared on a GPU has memory of the host to pass through");
    const auto send = [&](std::size_t first, std::size_t slot) {
      const std::size_t count = std::min(most, num_elements - first);
      auto* target = static_cast<std::byte*>(buffers_[slot].data());
      for (const TensorView& view : views) {
        const std::size_t size = size_of(view.dtype);
        device_copy(target,
                    static_cast<const std::byte*>(view.data) + first * size,
                    count * size,
                    stream_.view());
        target += most * size;
      }
      arrived_[slot].record(stream_.view());
    };
    std::size_t slot = 0;
    if (num_elements > 0) {
      send(0, slot);
    }
    for (std::size_t first = 0; first < num_elements; first += most, slot = 1 - slot) {
      if (first + most < num_elements) {
        send(first + most, 1 - slot);
      }
      arrived_[slot].wait();
      const std::size_t count = std::min(most, num_elements - first);
      const auto* source = static_cast<const std::byte*>(buffers_[slot].data());
      for (std::size_t i = 0; i < N; ++i) {
        const std::size_t size = size_of(views[i].dtype);
        piece[i] = {source, count * size};
        source += most * size;
      }
      visit(piece);
    }
  }

  std::size_t grain_bytes_;
  OwnedStream stream_;
  std::array<PinnedBuffer, 2> buffers_;
  std::array<Event, 2> arrived_;
};

}  // namespace memphis
