// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/core/device.h"
#include "csrc/data/loader.h"
#include "csrc/model/grok.h"

namespace memphis {

// Host memory for the samples of one step, filled by a loader and cut into micro-batches.
// Page-locked where the device is a GPU, so that a micro-batch is copied while the one before it
// computes.
class StepBatch {
 public:
  StepBatch(std::int64_t num_sequences,
            std::int64_t sequence_length,
            std::int64_t pad_id,
            Device device);

  struct Counts {
    std::int64_t targets = 0;
    std::int64_t valid_tokens = 0;
  };

  // Samples [first, first + num_sequences) of `loader`, which is a TrainingLoader or a
  // ValidationLoader.
  template <class Loader>
  Counts fill(const Loader& loader, std::uint64_t first) {
    Counts counts;
    for (std::int64_t i = 0; i < num_sequences_; ++i) {
      counts.targets += loader.sample(first + static_cast<std::uint64_t>(i), sample_view(i));
      counts.valid_tokens += mark_valid(i);
    }
    return counts;
  }

  // Sequences [begin, begin + count).
  HostBatch micro_batch(std::int64_t begin, std::int64_t count) const;

 private:
  SampleView sample_view(std::int64_t sequence) const;
  std::int64_t mark_valid(std::int64_t sequence);

  std::int64_t num_sequences_;
  std::int64_t sequence_length_;
  std::int64_t pad_id_;
  PinnedBuffer buffer_;
  std::int32_t* tokens_;
  std::int32_t* targets_;
  std::int32_t* positions_;
  std::uint8_t* valid_;
};

}  // namespace memphis
