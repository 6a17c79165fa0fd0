// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "csrc/data/mixture.h"
#include "csrc/data/token_stream.h"

namespace memphis {

// Target of a position that has nothing to predict.
constexpr std::int32_t kNoTarget = -1;

// Where one sample is written: the caller's rows of the batch, all of sequence_length elements.
struct SampleView {
  std::span<std::int32_t> tokens_S;    // inputs
  std::span<std::int32_t> targets_S;   // the token after each input; kNoTarget where that is of
                                       // another document, is not to be learnt, or was not to be
                                       // read
  std::span<std::int32_t> position_S;  // index within the document or, where the sample starts
                                       // inside one, within the sample: attention that goes back
                                       // `position` tokens stays within both
};

// Whether a document ends what attention sees and what is predicted. Without boundaries a sample is
// one text, whose positions count from its first token.
enum class Boundaries : bool { ignored, kept };

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
                 std::uint64_t seed,
                 Boundaries boundaries = Boundaries::kept);

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
  Boundaries boundaries_;
};

// One of the texts of a mixture, or the only one.
struct TrainingSource {
  std::string name;
  double weight = 1;
  std::shared_ptr<const TokenStream> stream;
  TokenRange range;
};

// The samples of a mixture: each of the source that Mixture chooses for its index, in that source's
// own order. A run resumes from one integer, at any number of ranks.
//
// `sources` must outlive the loader. Any number of threads may call sample.
class MixtureLoader {
 public:
  MixtureLoader(const std::vector<TrainingSource>& sources,
                std::int64_t sequence_length,
                std::uint64_t seed,
                Boundaries boundaries = Boundaries::kept);

  // As TrainingLoader does.
  std::int64_t sample(std::uint64_t index, const SampleView& out) const;

  const Mixture& mixture() const { return mixture_; }
  // Samples of an epoch of one source.
  std::uint64_t num_samples(std::size_t source) const { return loaders_[source].num_samples(); }
  // Epochs of a source that the first `num_samples` samples hold, the one that is begun by its part.
  double epochs(std::size_t source, std::uint64_t num_samples) const;

 private:
  Mixture mixture_;
  std::vector<TrainingLoader> loaders_;
};

// The windows of a range, in order and without overlap: each token of the range but the first is a
// target exactly once (unless it starts a document). The last window is filled up with pad tokens.
//
// `stream` must outlive the loader. Any number of threads may call sample.
class ValidationLoader {
 public:
  ValidationLoader(const TokenStream& stream,
                   TokenRange range,
                   std::int64_t sequence_length,
                   Boundaries boundaries = Boundaries::kept,
                   std::int32_t pad_token = 0);

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
  Boundaries boundaries_;
  std::int32_t pad_token_;
};

}  // namespace memphis
