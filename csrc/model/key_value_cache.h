// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/arena.h"
#include "csrc/core/tensor.h"

namespace memphis {

// Keys, after the rotary embedding, and values of sequences that grow, of every layer of a model on
// one rank: what a pass over new tokens needs of those before them. A token lies at the place that is
// its position. Who has which places is the caller's to know; nothing is forgotten but by being
// written again.
class KeyValueCache {
 public:
  static constexpr std::int64_t kCapacityMultiple = 16;  // where a sequence's flags begin aligned

  // Of `num_sequences` sequences of up to `capacity` tokens each, a multiple of that.
  KeyValueCache(const ModelConfig& model,
                std::int64_t num_sequences,
                std::int64_t capacity,
                DType compute,
                Stream stream);

  static std::size_t bytes(const ModelConfig& model,
                           std::int64_t num_sequences,
                           std::int64_t capacity,
                           DType compute);

  std::int64_t num_sequences() const { return num_sequences_; }
  std::int64_t capacity() const { return capacity_; }

  // [num_sequences * capacity, 2 G, H]: of each token its keys, then its values.
  const TensorView& layer(std::size_t index) const { return layers_[index]; }

  // Says of tokens from place `begin` on whether they are keys (not the pad id). The memory is read
  // before the call returns.
  void mark_valid(std::int64_t sequence, std::int64_t begin, std::span<const std::uint8_t> valid);
  // u8 [num_sequences * capacity]; absent as long as every token is a key.
  TensorView key_valid() const { return any_padding_ ? key_valid_U_ : TensorView{}; }

 private:
  std::int64_t num_sequences_;
  std::int64_t capacity_;
  Stream stream_;
  Arena arena_;
  std::vector<TensorView> layers_;
  TensorView key_valid_U_;
  bool any_padding_ = false;
};

// Sequences of a KeyValueCache that a micro-batch goes on with: its b-th is the cache's
// `first_sequence` + b, and begins at place `begin`[b], behind what the cache has of it. Of its S
// tokens the first `count`[b] are kept there; the others stand for nothing.
struct CachedSequences {
  const KeyValueCache* cache = nullptr;  // null: each sequence begins with its first token
  std::int64_t first_sequence = 0;
  std::span<const std::int64_t> begin;
  std::span<const std::int64_t> count;
};

}  // namespace memphis
