// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/key_value_cache.h"

#include <algorithm>

#include "csrc/core/error.h"

namespace memphis {
namespace {

TensorSpec layer_spec(const ModelConfig& model, std::int64_t num_tokens, DType compute) {
  return {{num_tokens, 2 * model.num_kv_heads, model.head_dim}, compute};
}

}  // namespace

std::size_t KeyValueCache::bytes(const ModelConfig& model,
                                 std::int64_t num_sequences,
                                 std::int64_t capacity,
                                 DType compute) {
  const std::int64_t num_tokens = num_sequences * capacity;
  return static_cast<std::size_t>(model.num_layers) *
             arena_bytes(layer_spec(model, num_tokens, compute)) +
         arena_bytes(static_cast<std::size_t>(num_tokens));
}

KeyValueCache::KeyValueCache(const ModelConfig& model,
                             std::int64_t num_sequences,
                             std::int64_t capacity,
                             DType compute,
                             Stream stream)
    : num_sequences_(num_sequences),
      capacity_(capacity),
      stream_(stream),
      arena_("keys and values", bytes(model, num_sequences, capacity, compute), stream.device) {
  require(capacity % kCapacityMultiple == 0, "a sequence's keys begin aligned");
  const std::int64_t num_tokens = num_sequences * capacity;
  for (std::int64_t i = 0; i < model.num_layers; ++i) {
    // Zeroed: kernels multiply what no query sees by 0, which only a number survives.
    layers_.push_back(arena_.allocate(layer_spec(model, num_tokens, compute)));
  }
  key_valid_U_ = arena_.allocate({{num_tokens}, DType::u8});
  const std::vector<std::uint8_t> all_valid(static_cast<std::size_t>(num_tokens), 1);
  device_copy(key_valid_U_.data, all_valid.data(), all_valid.size(), stream_);
  synchronize(stream_);
}

void KeyValueCache::mark_valid(std::int64_t sequence,
                               std::int64_t begin,
                               std::span<const std::uint8_t> valid) {
  require(sequence >= 0 && sequence < num_sequences_ && begin >= 0 &&
              begin + static_cast<std::int64_t>(valid.size()) <= capacity_,
          "tokens lie within a sequence's capacity");
  const bool all =
      std::all_of(valid.begin(), valid.end(), [](std::uint8_t one) { return one != 0; });
  any_padding_ = any_padding_ || !all;
  if (!any_padding_) {
    return;  // which the memory says already
  }
  device_copy(static_cast<std::uint8_t*>(key_valid_U_.data) + sequence * capacity_ + begin,
              valid.data(),
              valid.size(),
              stream_);
  synchronize(stream_);
}

}  // namespace memphis
