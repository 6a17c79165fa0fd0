// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "csrc/model/exchange.h"
#include "csrc/model/key_value_cache.h"
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
  // Where the tokens of a sequence lie on several ranks, of which those above are this one's, as
  // BatchActivations has them; U = B * whole_S long but for places.
  std::span<const std::int32_t> places_T = {};
  std::span<const std::uint8_t> key_valid_U = {};       // in the order of sequences
  std::span<const std::uint8_t> numbered_valid_U = {};  // of numbers
  std::span<const std::int32_t> key_position_U = {};    // of sequences
  std::span<const std::int32_t> key_place_U = {};       // of numbers
  std::span<const std::int32_t> key_number_U = {};
  std::span<const std::int32_t> key_of_number_U = {};
  bool any_padding = false;  // some key is not valid
};

// All that there is of one micro-batch in one stage between the calls of Grok: its tensors, in a slot
// that the plan has made room for, and where its rows went. The model itself keeps nothing of it, so
// as many are under way as there are slots. Grok::load begins with the next one in the same place.
struct MicroBatch {
  // `slot` must outlive it.
  MicroBatch(const Slot& slot, const Dims& dims, Device device)
      : stage(slot.stage),
        first_layer(static_cast<std::size_t>(slot.first_layer)),
        tensors(slot.batch),
        layers(slot.layers) {
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      exchanges.emplace_back(dims, device);
    }
  }

  // What the layer at `place` in this stage reads, and, at the end of them, what the stage makes.
  const TensorView& hidden_before(std::size_t place) const {
    return place == 0 ? tensors.hidden_TD : layers[place - 1].out_TD;
  }
  const TensorView& output_TD() const { return hidden_before(layers.size()); }
  // In the model.
  int layer_at(std::size_t place) const {
    return static_cast<int>(stage.layers.begin) + static_cast<int>(place);
  }

  const StageLayers& stage;
  std::size_t first_layer;  // the place of the stage's first layer among those of this rank
  const BatchActivations<TensorView>& tensors;
  const std::vector<LayerActivations<TensorView>>& layers;  // of the stage
  std::vector<ExpertExchange> exchanges;                    // a layer each
  TensorView key_valid_U;                                   // absent where no token is the pad id
  TensorView routed_valid_T;                                // of the routed tokens
  CachedSequences cached;                                   // of inference alone
};

// One for each slot, in their order.
inline std::vector<MicroBatch> make_slots(const Activations& activations,
                                          const Dims& dims,
                                          Device device) {
  std::vector<MicroBatch> slots;
  for (const Slot& slot : activations.slots) {
    slots.emplace_back(slot, dims, device);
  }
  return slots;
}

}  // namespace memphis
