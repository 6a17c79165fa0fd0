// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "csrc/model/exchange.h"
#include "csrc/plan/activations.h"
#include "csrc/plan/dims.h"

namespace memphis {

// One micro-batch in host memory, B * S long each. `positions` count from the start of the document
// or of the sequence, whichever is later. `targets` below 0 are not predicted.
struct HostBatch {
  std::span<const std::int32_t> tokens_T;
  std::span<const std::int32_t> targets_T;
  std::span<const std::int32_t> positions_T;
  std::span<const std::uint8_t> valid_T;  // 0 where the token is the pad id
  bool any_padding = false;               // some valid_T is 0
};

// All that there is of one micro-batch between the calls of Grok: its tensors, in a slot that the
// plan has made room for, and where its rows went. The model itself keeps nothing of it, so as many
// are under way as there are slots. Grok::load begins with the next one in the same place.
struct MicroBatch {
  // `slot` must outlive it.
  MicroBatch(const Slot& slot, const Dims& dims, Device device)
      : tensors(slot.batch), layers(slot.layers) {
    for (std::int64_t layer = 0; layer < dims.L; ++layer) {
      exchanges.emplace_back(dims, device);
    }
  }

  const BatchActivations<TensorView>& tensors;
  const std::vector<LayerActivations<TensorView>>& layers;
  std::vector<ExpertExchange> exchanges;  // a layer each
  TensorView key_valid_T;                 // absent where no token is the pad id
  TensorView routed_valid_T;              // of the routed tokens
};

}  // namespace memphis
