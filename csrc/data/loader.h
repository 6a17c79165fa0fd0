// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "csrc/data/token_stream.h"

namespace memphis {

// Target of a position that has nothing to predict.
constexpr std::int32_t kNoTarget = -1;

// Where one sample is written: the caller's rows of the batch, all of sequence_length elements.
struct SampleView {
  std::span<std::int32_t> tokens_S;    // inputs
  std::span<std::int32_t> targets_S;   // the token after each input; kNoTarget where that is of
                                       // another document, or was not to be read
  std::span<std::int32_t> position_S;  // index within the document or, where the sample starts
                                       // inside one, within the sample: attention that goes back
                                       // `position` tokens stays within both
};

// Training samples, in an order that is a pure function of (seed, the stream's fingerprint, index):
// a run resumes from one integer, at any number of ranks.
//
// The range is cut into chunks of sequence_length tokens; an epoch visits each chunk once, in an
// order of its own. The cut moves by a random offset from epoch to epoch, so that no token is
// always the first of its sample. It is a cut of a ring: a chunk that runs over the range's end
// goes on at its beginning, as a new document. So every token of the range but at most
// sequence_length of them is an input exactly once an epoch.
//
// `stream` must outlive the loader. Any number of threads may call sample.
class TrainingLoader {
 public:
  // Requires range.size() > sequence_length.
  TrainingLoader(const TokenStream& stream,
                 TokenRange range,
                 std::int64_t sequence_length,
                 std::uint64_t seed);

  // Samples of an epoch.
  std::uint64_t num_samples() const { return num_samples_; }

  // Sample `index`, counted over all epochs. Returns the number of targets that are not kNoTarget.
  // Does not allocate.
  std::int64_t sample(std::uint64_t index, const SampleView& out) const;

 private:
  const TokenStream* stream_;
  TokenRange range_;
  std::uint64_t sequence_length_;
  std::uint64_t num_samples_;
  std::uint64_t key_;
};

// The windows of a range, in order and without overlap: each token of the range but the first is a
// target exactly once (unless it starts a document). The last window is filled up with pad tokens.
//
// `stream` must outlive the loader. Any number of threads may call sample.
class ValidationLoader {
 public:
  ValidationLoader(const TokenStream& stream, TokenRange range, std::int64_t sequence_length);

  // None for a range of fewer than two tokens.
  std::uint64_t num_samples() const { return num_samples_; }

  // Window `index`. Those from num_samples on are all padding, so that ranks which share the
  // windows make equally many calls. Returns the number of targets that are not kNoTarget. Does not
  // allocate.
  std::int64_t sample(std::uint64_t index, const SampleView& out) const;

 private:
  const TokenStream* stream_;
  TokenRange range_;
  std::uint64_t sequence_length_;
  std::uint64_t num_samples_;
};

}  // namespace memphis
