// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/core/device.h"
#include "csrc/data/loader.h"
#include "csrc/model/grok.h"
#include "csrc/plan/share.h"

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

  // Those samples of `loader`, a MixtureLoader or a ValidationLoader, that this rank takes of the
  // ones from `first` on.
  template <class Loader>
  Counts fill(const Loader& loader, std::uint64_t first, const SampleShare& share) {
    Counts counts;
    for (std::int64_t i = 0; i < num_sequences_; ++i) {
      const std::uint64_t index = first + static_cast<std::uint64_t>(share.place(i));
      counts.targets += loader.sample(index, sample_view(i));
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
