// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/batch.h"

#include <algorithm>

#include "csrc/plan/host_memory.h"

namespace memphis {
StepBatch::StepBatch(std::int64_t num_sequences,
                     std::int64_t sequence_length,
                     std::int64_t pad_id,
                     Device device)
    : num_sequences_(num_sequences),
      sequence_length_(sequence_length),
      pad_id_(pad_id),
      buffer_(batch_bytes(num_sequences, sequence_length), device) {
  const std::int64_t num_tokens = num_sequences * sequence_length;
  tokens_ = static_cast<std::int32_t*>(buffer_.data());
  targets_ = tokens_ + num_tokens;
  positions_ = targets_ + num_tokens;
  valid_ = reinterpret_cast<std::uint8_t*>(positions_ + num_tokens);
}

SampleView StepBatch::sample_view(std::int64_t sequence) const {
  const std::int64_t begin = sequence * sequence_length_;
  const auto length = static_cast<std::size_t>(sequence_length_);
  return {.tokens_S = {tokens_ + begin, length},
          .targets_S = {targets_ + begin, length},
          .position_S = {positions_ + begin, length}};
}

std::int64_t StepBatch::mark_valid(std::int64_t sequence) {
  const std::int64_t begin = sequence * sequence_length_;
  std::int64_t num_valid = 0;
  for (std::int64_t i = begin; i < begin + sequence_length_; ++i) {
    const bool valid = tokens_[i] != pad_id_;
    valid_[i] = valid ? 1 : 0;
    num_valid += valid ? 1 : 0;
  }
  return num_valid;
}

HostBatch StepBatch::micro_batch(std::int64_t begin, std::int64_t count) const {
  const std::int64_t first = begin * sequence_length_;
  const auto length = static_cast<std::size_t>(count * sequence_length_);
  const std::span<const std::uint8_t> valid(valid_ + first, length);
  return {.tokens_T = {tokens_ + first, length},
          .targets_T = {targets_ + first, length},
          .positions_T = {positions_ + first, length},
          .valid_T = valid,
          .any_padding = std::find(valid.begin(), valid.end(), 0) != valid.end()};
}

}  // namespace memphis
