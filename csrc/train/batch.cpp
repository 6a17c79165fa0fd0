// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/batch.h"

#include <algorithm>
#include <numeric>

#include "csrc/core/error.h"
#include "csrc/plan/host_memory.h"

namespace memphis {

SequenceShare sequence_share(const Config& config, const Share& share) {
  return {.context = share.context,
          .order = config.parallel.context_order,
          .micro_batch = config.batch.micro_batch};
}

StepBatch::StepBatch(std::int64_t num_sequences,
                     std::int64_t sequence_length,
                     std::int64_t pad_id,
                     Device device,
                     const SequenceShare& share)
    : num_sequences_(num_sequences),
      sequence_length_(sequence_length),
      own_length_(sequence_length / share.context.count),
      pad_id_(pad_id),
      share_(share),
      cuts_(share.context.count > 1),
      buffer_(batch_bytes(num_sequences, sequence_length, share.context.count), device),
      order_(sequence_length, share.context, share.order) {
  const std::int64_t num_tokens = num_sequences * own_length_;
  const std::int64_t num_keys = num_sequences * sequence_length;
  auto* next = static_cast<std::int32_t*>(buffer_.data());
  const auto take = [&](std::int64_t count) {
    std::int32_t* const taken = next;
    next += count;
    return taken;
  };
  tokens_ = take(num_tokens);
  targets_ = take(num_tokens);
  positions_ = take(num_tokens);
  if (cuts_) {
    places_ = take(num_tokens);
    key_number_ = take(num_keys);
    key_of_number_ = take(num_keys);
    key_position_ = take(num_keys);
    key_place_ = take(num_keys);
  }
  valid_ = reinterpret_cast<std::uint8_t*>(next);
  if (!cuts_) {
    return;
  }
  require(num_sequences % share.micro_batch == 0, "samples are cut into whole micro-batches");
  key_valid_ = valid_ + num_tokens;
  numbered_valid_ = key_valid_ + num_keys;
  for (std::vector<std::int32_t>& values : whole_) {
    values.resize(static_cast<std::size_t>(sequence_length));
  }
  pairs_.resize(static_cast<std::size_t>(share.context.count));
}

SampleView StepBatch::sample_view(std::int64_t sequence) {
  if (cuts_) {
    return {.tokens_S = whole_[0], .targets_S = whole_[1], .position_S = whole_[2]};
  }
  const std::int64_t begin = sequence * sequence_length_;
  const auto length = static_cast<std::size_t>(sequence_length_);
  return {.tokens_S = {tokens_ + begin, length},
          .targets_S = {targets_ + begin, length},
          .position_S = {positions_ + begin, length}};
}

std::int64_t StepBatch::cut(std::int64_t sequence) {
  order_.assign(whole_[2]);
  weigh(sequence);
  const std::span<const std::int32_t> places = order_.places();
  std::int64_t num_targets = 0;
  for (std::int64_t i = 0; i < own_length_; ++i) {
    const std::int64_t t = sequence * own_length_ + i;
    const auto place = static_cast<std::size_t>(places[static_cast<std::size_t>(i)]);
    tokens_[t] = whole_[0][place];
    targets_[t] = whole_[1][place];
    positions_[t] = whole_[2][place];
    places_[t] = static_cast<std::int32_t>(place);
    num_targets += targets_[t] >= 0 ? 1 : 0;
  }
  // Ranks send all tokens of a micro-batch, sequence by sequence.
  const std::int64_t b = sequence % share_.micro_batch;
  const std::int64_t first_key = (sequence - b) * sequence_length_;  // of the micro-batch
  for (std::int64_t s = 0; s < sequence_length_; ++s) {
    const std::int64_t number = order_.numbers()[static_cast<std::size_t>(s)];
    const std::int64_t rank = number / own_length_;
    const std::int64_t in_batch =
        (rank * share_.micro_batch + b) * own_length_ + number % own_length_;
    const std::int64_t key = b * sequence_length_ + s;
    const auto place = static_cast<std::size_t>(s);
    const std::uint8_t valid = whole_[0][place] != pad_id_ ? 1 : 0;
    key_number_[first_key + key] = static_cast<std::int32_t>(in_batch);
    key_position_[first_key + key] = whole_[2][place];
    key_valid_[first_key + key] = valid;
    key_of_number_[first_key + in_batch] = static_cast<std::int32_t>(key);
    key_place_[first_key + in_batch] = static_cast<std::int32_t>(s);
    numbered_valid_[first_key + in_batch] = valid;
  }
  return num_targets;
}

void StepBatch::weigh(std::int64_t sequence) {
  if (sequence % share_.micro_batch == 0) {
    std::fill(pairs_.begin(), pairs_.end(), 0);
  }
  for (std::size_t rank = 0; rank < pairs_.size(); ++rank) {
    pairs_[rank] += order_.pairs()[rank];
  }
  if ((sequence + 1) % share_.micro_batch == 0) {
    imbalance_.most += *std::max_element(pairs_.begin(), pairs_.end());
    imbalance_.all += std::accumulate(pairs_.begin(), pairs_.end(), std::int64_t{0});
  }
}

double StepBatch::context_imbalance() const {
  return imbalance_.all == 0 ? 1
                             : static_cast<double>(imbalance_.most * share_.context.count) /
                                   static_cast<double>(imbalance_.all);
}

StepBatch::Owner StepBatch::owner_of(std::int64_t index) const {
  const std::int64_t own = share_.micro_batch * own_length_;
  const std::int64_t number = cuts_ ? key_number_[index] : index;
  return {.rank = number / own, .token = number % own};
}

std::int64_t StepBatch::mark_valid(std::int64_t sequence) {
  const std::int64_t begin = sequence * own_length_;
  std::int64_t num_valid = 0;
  for (std::int64_t i = begin; i < begin + own_length_; ++i) {
    const bool valid = tokens_[i] != pad_id_;
    valid_[i] = valid ? 1 : 0;
    num_valid += valid ? 1 : 0;
  }
  return num_valid;
}

HostBatch StepBatch::micro_batch(std::int64_t begin, std::int64_t count) const {
  const std::int64_t first = begin * own_length_;
  const auto length = static_cast<std::size_t>(count * own_length_);
  HostBatch batch{.tokens_T = {tokens_ + first, length},
                  .targets_T = {targets_ + first, length},
                  .positions_T = {positions_ + first, length},
                  .valid_T = {valid_ + first, length}};
  std::span<const std::uint8_t> keys = batch.valid_T;
  if (cuts_) {
    const std::int64_t first_key = begin * sequence_length_;
    const auto num_keys = static_cast<std::size_t>(count * sequence_length_);
    batch.places_T = {places_ + first, length};
    batch.key_valid_U = {key_valid_ + first_key, num_keys};
    batch.numbered_valid_U = {numbered_valid_ + first_key, num_keys};
    batch.key_position_U = {key_position_ + first_key, num_keys};
    batch.key_place_U = {key_place_ + first_key, num_keys};
    batch.key_number_U = {key_number_ + first_key, num_keys};
    batch.key_of_number_U = {key_of_number_ + first_key, num_keys};
    keys = batch.key_valid_U;
  }
  batch.any_padding = std::find(keys.begin(), keys.end(), 0) != keys.end();
  return batch;
}

}  // namespace memphis
