// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/loader.h"

#include <algorithm>
#include <array>

#include "csrc/core/error.h"
#include "csrc/core/rng.h"
#include "csrc/data/permutation.h"

namespace memphis {
namespace {

SampleView part_of(const SampleView& view, std::size_t begin, std::size_t count) {
  return {.tokens_S = view.tokens_S.subspan(begin, count),
          .targets_S = view.targets_S.subspan(begin, count),
          .position_S = view.position_S.subspan(begin, count)};
}

void require_size(const SampleView& view, std::uint64_t sequence_length) {
  require(view.tokens_S.size() == sequence_length && view.targets_S.size() == sequence_length &&
              view.position_S.size() == sequence_length,
          "a sample is written to spans of sequence_length elements");
}

// Takes away the targets, tokens [begin, end), that are not to be learnt.
void mask_targets(const TokenStream& stream,
                  std::uint64_t begin,
                  std::uint64_t end,
                  std::span<std::int32_t> targets) {
  std::array<std::uint8_t, 1024> learnt;
  for (std::uint64_t at = begin; at < end;) {
    const auto some = std::span(learnt).first(std::min<std::uint64_t>(learnt.size(), end - at));
    stream.read_mask(at, some);
    for (std::size_t i = 0; i < some.size(); ++i) {
      if (some[i] == 0) {
        targets[at - begin + i] = kNoTarget;
      }
    }
    at += some.size();
  }
}

// Fills `out` from token `begin` on, as a context of its own. No token from `end` on is read.
std::int64_t fill(const TokenStream& stream,
                  std::uint64_t begin,
                  std::uint64_t end,
                  Boundaries boundaries,
                  const SampleView& out) {
  const std::size_t count = out.tokens_S.size();
  if (count == 0) {
    return 0;
  }
  stream.read(begin, out.tokens_S, out.position_S);
  // Position 0 is the first token of another document.
  const bool kept = boundaries == Boundaries::kept;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    out.targets_S[i] = kept && out.position_S[i + 1] == 0 ? kNoTarget : out.tokens_S[i + 1];
  }
  std::int32_t next_token = kNoTarget;
  std::int32_t next_position = 0;
  if (begin + count < end) {
    stream.read(begin + count, {&next_token, 1}, {&next_position, 1});
  }
  out.targets_S[count - 1] = kept && next_position == 0 ? kNoTarget : next_token;
  if (stream.has_mask()) {
    mask_targets(stream, begin + 1, std::min(begin + 1 + count, end), out.targets_S);
  }

  std::int64_t num_targets = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto in_sample = static_cast<std::int32_t>(i);
    out.position_S[i] = kept ? std::min(out.position_S[i], in_sample) : in_sample;
    num_targets += out.targets_S[i] == kNoTarget ? 0 : 1;
  }
  return num_targets;
}

// Every pad is a document of its own (position 0), so that it costs attention one key.
void pad(const SampleView& out, std::int32_t token) {
  std::fill(out.tokens_S.begin(), out.tokens_S.end(), token);
  std::fill(out.targets_S.begin(), out.targets_S.end(), kNoTarget);
  std::fill(out.position_S.begin(), out.position_S.end(), 0);
}

void require_range(const TokenStream& stream, TokenRange range, std::int64_t sequence_length) {
  require(sequence_length >= 1, "a sequence has at least one token");
  require(range.begin <= range.end && range.end <= stream.num_tokens(),
          "a loader's range lies within its stream");
}

std::vector<double> weights_of(const std::vector<TrainingSource>& sources) {
  std::vector<double> weights;
  for (const TrainingSource& source : sources) {
    weights.push_back(source.weight);
  }
  return weights;
}

std::uint64_t epoch_offset(std::uint64_t key, std::uint64_t epoch, std::uint64_t sequence_length) {
  return CounterRng(key, "data/offset").word64(epoch) % sequence_length;
}

}  // namespace

TrainingLoader::TrainingLoader(const TokenStream& stream,
                               TokenRange range,
                               std::int64_t sequence_length,
                               std::uint64_t seed,
                               Boundaries boundaries)
    : stream_(&stream),
      range_(range),
      sequence_length_(static_cast<std::uint64_t>(sequence_length)),
      num_samples_(0),
      key_(CounterRng(seed, "data/order/" + stream.fingerprint()).word64(0)),
      boundaries_(boundaries) {
  require_range(stream, range, sequence_length);
  require(range.size() > sequence_length_, "a training range holds a sequence and its last target");
  num_samples_ = (range.size() - 1) / sequence_length_;
}

std::int64_t TrainingLoader::sample(std::uint64_t index, const SampleView& out) const {
  require_size(out, sequence_length_);
  const std::uint64_t epoch = index / num_samples_;
  const std::uint64_t chunk = permuted_index(index % num_samples_, num_samples_, key_, epoch);
  const std::uint64_t offset = epoch_offset(key_, epoch, sequence_length_);
  const std::uint64_t first = (offset + chunk * sequence_length_) % range_.size();
  const std::uint64_t num_before_end = std::min(sequence_length_, range_.size() - first);
  return fill(*stream_,
              range_.begin + first,
              range_.end,
              boundaries_,
              part_of(out, 0, num_before_end)) +
         fill(*stream_,
              range_.begin,
              range_.end,
              boundaries_,
              part_of(out, num_before_end, sequence_length_ - num_before_end));
}

MixtureLoader::MixtureLoader(const std::vector<TrainingSource>& sources,
                             std::int64_t sequence_length,
                             std::uint64_t seed,
                             Boundaries boundaries)
    : mixture_(weights_of(sources)) {
  for (const TrainingSource& source : sources) {
    loaders_.emplace_back(*source.stream, source.range, sequence_length, seed, boundaries);
  }
}

std::int64_t MixtureLoader::sample(std::uint64_t index, const SampleView& out) const {
  const Mixture::Place place = mixture_.place(index);
  return loaders_[place.source].sample(place.index, out);
}

double MixtureLoader::epochs(std::size_t source, std::uint64_t num_samples) const {
  return static_cast<double>(mixture_.count(source, num_samples)) /
         static_cast<double>(loaders_[source].num_samples());
}

ValidationLoader::ValidationLoader(const TokenStream& stream,
                                   TokenRange range,
                                   std::int64_t sequence_length,
                                   Boundaries boundaries,
                                   std::int32_t pad_token)
    : stream_(&stream),
      range_(range),
      sequence_length_(static_cast<std::uint64_t>(sequence_length)),
      num_samples_(0),
      boundaries_(boundaries),
      pad_token_(pad_token) {
  require_range(stream, range, sequence_length);
  const std::uint64_t num_inputs = range.size() - std::min<std::uint64_t>(range.size(), 1);
  num_samples_ = (num_inputs + sequence_length_ - 1) / sequence_length_;
}

std::int64_t ValidationLoader::sample(std::uint64_t index, const SampleView& out) const {
  require_size(out, sequence_length_);
  if (index >= num_samples_) {
    pad(out, pad_token_);
    return 0;
  }
  const std::uint64_t begin = range_.begin + index * sequence_length_;
  // The last token of the range is a target only.
  const std::uint64_t num_inputs = std::min(sequence_length_, range_.end - 1 - begin);
  pad(part_of(out, num_inputs, sequence_length_ - num_inputs), pad_token_);
  return fill(*stream_, begin, range_.end, boundaries_, part_of(out, 0, num_inputs));
}

}  // namespace memphis
