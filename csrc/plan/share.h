// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include "csrc/config/config.h"
#include "csrc/plan/mesh.h"

namespace memphis {

// Elements [begin, begin + count) of something.
struct Range {
  std::int64_t begin = 0;
  std::int64_t count = 0;

  std::int64_t end() const { return begin + count; }
  bool operator==(const Range&) const = default;
};

// What two ranges have in common; count 0 if it is nothing.
inline Range intersection(const Range& a, const Range& b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {.begin = begin, .count = std::max<std::int64_t>(std::min(a.end(), b.end()) - begin, 0)};
}

// One of `count` nearly equal pieces: piece i of n things is [n i / count, n (i + 1) / count).
struct Piece {
  std::int64_t index = 0;
  std::int64_t count = 1;

  Range of(std::int64_t n) const;
};

// What one rank holds of everything that is cut along the mesh's axes. The default is all of it.
// Sizes and places follow from this and the config; nothing below csrc/plan knows a rank.
struct Share {
  Piece tensor = {};         // heads, dense FFN, vocabulary; tokens outside of attention
  Piece expert = {};         // experts
  Piece expert_tensor = {};  // the width of an expert
  Piece data = {};           // sequences; optimizer state of what tensor cuts
  Piece expert_data = {};    // optimizer state of experts
  Piece stage = {};          // optimizer state of what no axis cuts
  bool sequence_parallel = true;
  bool shard_optimizer = true;   // ZeRO-1
  bool shard_gradients = false;  // ZeRO-2
  std::int64_t bucket_bytes = std::int64_t{32} << 20;
  double expert_buffer = 0;  // ParallelConfig::expert_buffer
};

Share make_share(const ParallelConfig& parallel, const Mesh& mesh, std::int64_t rank);

// Which samples of a step a rank takes: micro-batch m of the ranks along `data`, side by side, is a
// run of the global order, so that one rank would take the same samples in the same micro-batches.
class SampleShare {
 public:
  SampleShare(const BatchConfig& batch, const Share& share);

  std::int64_t num_sequences() const { return num_sequences_; }  // of a step, on this rank
  // The place of this rank's sequence `i` among the samples of the step.
  std::int64_t place(std::int64_t i) const;

 private:
  std::int64_t micro_batch_;
  std::int64_t num_sequences_;
  Piece data_;
};

}  // namespace memphis
