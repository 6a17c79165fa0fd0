// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/range.h"
#include "csrc/plan/stages.h"

namespace memphis {

// What one rank holds of everything that is cut along the mesh's axes. The default is all of it.
// Sizes and places follow from this and the config; nothing below csrc/plan knows a rank.
//
// The words for what is cut, everywhere:
//   share    all that a rank has, of everything
//   piece    of one thing that is cut into nearly equal ones: number `index` of `count` (Piece)
//   local_   before the letter of a dim: the piece of it that this rank has (csrc/plan/dims.h)
//   range    neighbouring elements, rows or layers, of whatever (Range)
//   run      a range of elements that one op or message takes at a time
//   part     of a logical parameter: the elements of it that a rank has, which may be many ranges
//   segment  of a rank's elements: those that move together (csrc/plan/parameters.h)
//   stage    of the model's layers: those that a micro-batch passes at a time (csrc/plan/stages.h)
struct Share {
  Piece tensor = {};         // heads, dense FFN, vocabulary; tokens outside of attention
  Piece expert = {};         // experts
  Piece expert_tensor = {};  // the width of an expert
  Piece data = {};           // sequences
  Piece context = {};        // the tokens of a sequence (csrc/plan/context_order.h)
  Piece data_context = {};   // optimizer state of what tensor cuts
  Piece expert_data = {};    // optimizer state of experts
  Piece stage_ranks = {};    // optimizer state of what no axis cuts
  // What this rank has of a model that is cut into stages, by chunk; empty: all of it, in one.
  std::vector<StageLayers> stages = {};
  bool sequence_parallel = true;
  bool shard_optimizer = true;   // ZeRO-1
  bool shard_gradients = false;  // ZeRO-2
  bool shard_weights = false;    // ZeRO-3
  std::int64_t bucket_bytes = std::int64_t{32} << 20;
  double expert_buffer = 0;  // ParallelConfig::expert_buffer
};

Share make_share(const ModelConfig& model,
                 const ParallelConfig& parallel,
                 const Mesh& mesh,
                 std::int64_t rank);

// share.stages, and the whole model in one stage where it has none.
std::vector<StageLayers> stages_of(const ModelConfig& model, const Share& share);

// Which samples of a step a rank takes: micro-batch m of the ranks along `data`, side by side, is a
// run of the global order, so that one rank would take the same samples in the same micro-batches.
class SampleShare {
 public:
  // Of one rank, which takes all of them.
  SampleShare() = default;
  SampleShare(const BatchConfig& batch, const Share& share);

  std::int64_t num_sequences() const { return num_sequences_; }  // of a step, on this rank
  // The place of this rank's sequence `i` among the samples of the step.
  std::int64_t place(std::int64_t i) const;

 private:
  std::int64_t micro_batch_ = 1;
  std::int64_t num_sequences_ = 0;
  Piece data_;
};

}  // namespace memphis
