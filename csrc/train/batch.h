// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "csrc/core/device.h"
#include "csrc/data/loader.h"
#include "csrc/model/grok.h"
#include "csrc/plan/context_order.h"
#include "csrc/plan/share.h"

namespace memphis {

// What a rank along `context` has of the sequences of a micro-batch.
struct SequenceShare {
  Piece context = {};
  ContextOrderKind order = ContextOrderKind::automatic;
  std::int64_t micro_batch = 1;  // sequences
};

SequenceShare sequence_share(const Config& config, const Share& share);

// Host memory for the samples of one step, filled by a loader and cut into micro-batches. Of each
// sample this rank keeps its tokens, in the order of their places. Page-locked where the device is a
// GPU, so that a micro-batch is copied while the one before it computes.
class StepBatch {
 public:
  StepBatch(std::int64_t num_sequences,
            std::int64_t sequence_length,
            std::int64_t pad_id,
            Device device,
            const SequenceShare& share = {});

  // Of this rank's tokens.
  struct Counts {
    std::int64_t targets = 0;
    std::int64_t valid_tokens = 0;
  };

  // Those samples of `loader`, a MixtureLoader or a ValidationLoader, that this rank takes of the
  // ones from `first` on.
  template <class Loader>
  Counts fill(const Loader& loader, std::uint64_t first, const SampleShare& share) {
    Counts counts;
    imbalance_ = {};
    for (std::int64_t i = 0; i < num_sequences_; ++i) {
      const std::uint64_t index = first + static_cast<std::uint64_t>(share.place(i));
      const std::int64_t num_targets = loader.sample(index, sample_view(i));
      counts.targets += cuts_ ? cut(i) : num_targets;
      counts.valid_tokens += mark_valid(i);
    }
    return counts;
  }

  // All samples of `loader`, from the first on.
  template <class Loader>
  Counts fill(const Loader& loader) {
    return fill(loader, 0, SampleShare());
  }

  // Sequences [begin, begin + count), one or more whole micro-batches.
  HostBatch micro_batch(std::int64_t begin, std::int64_t count) const;

  // Of the samples that fill() has taken, the most pairs of a query and a key that it sees on one of
  // the ranks that share out a sequence, over the mean of these ranks; micro-batch by micro-batch, as
  // ranks wait for one another. 1 where nobody does.
  double context_imbalance() const;

  // Which of the ranks that share sequences out has token `index` of a micro-batch of whole ones, and
  // as which of its own.
  struct Owner {
    std::int64_t rank = 0;
    std::int64_t token = 0;
  };
  Owner owner_of(std::int64_t index) const;

 private:
  SampleView sample_view(std::int64_t sequence);
  // Of the sample that was read last; returns the targets among this rank's tokens.
  std::int64_t cut(std::int64_t sequence);
  std::int64_t mark_valid(std::int64_t sequence);
  void weigh(std::int64_t sequence);

  std::int64_t num_sequences_;
  std::int64_t sequence_length_;
  std::int64_t own_length_;  // tokens of a sequence that this rank has
  std::int64_t pad_id_;
  SequenceShare share_;
  bool cuts_;
  PinnedBuffer buffer_;
  std::int32_t* tokens_;
  std::int32_t* targets_;
  std::int32_t* positions_;
  // Where ranks share a sequence out, else null.
  std::int32_t* places_ = nullptr;
  std::int32_t* key_number_ = nullptr;
  std::int32_t* key_of_number_ = nullptr;
  std::int32_t* key_position_ = nullptr;
  std::int32_t* key_place_ = nullptr;
  std::uint8_t* valid_;
  std::uint8_t* key_valid_ = nullptr;
  std::uint8_t* numbered_valid_ = nullptr;

  ContextOrder order_;
  std::array<std::vector<std::int32_t>, 3> whole_;  // tokens, targets, positions of one sample
  std::vector<std::int64_t> pairs_;                 // of a micro-batch, by rank
  struct Imbalance {
    std::int64_t most = 0;
    std::int64_t all = 0;
  };
  Imbalance imbalance_;
};

}  // namespace memphis
