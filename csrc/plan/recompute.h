// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/plan/dims.h"

namespace memphis {

// Which ops make a tensor of a layer, so that the backward pass may have it from them again instead
// of finding it kept; `nothing`: it is kept in every case, being small or a layer's output.
enum class GivenBackBy : std::uint8_t { nothing, norm, attention, experts, geglu, block };
bool gives_back(const RecomputeGroups& groups, GivenBackBy by);

// What is computed again: `groups` in the first num_layers layers and `rest`, which is part of them,
// in the others.
struct Recompute {
  RecomputeGroups groups;
  std::int64_t num_layers = 0;
  RecomputeGroups rest = {};

  const RecomputeGroups& of_layer(std::int64_t layer) const {
    return layer < num_layers ? groups : rest;
  }
  bool any() const { return (num_layers > 0 && groups.any()) || rest.any(); }
  // Whether the backward pass of some layer sends its rows to their experts a second time, where
  // they travel.
  bool sends_again() const { return (num_layers > 0 && groups.block) || rest.block; }
  bool operator==(const Recompute&) const = default;
};

// "norm, geglu in all 64 layers, experts too in the first 32"
std::string describe(const Recompute& recompute, std::int64_t num_layers);

// What it costs of a token, over all layers: multiplications and additions, and bytes that ops
// without products read and write. What ranks send each other again is not counted: `block` gathers
// and sums over tensor ranks, and sends rows to their experts, as the forward pass does, and
// `experts` gathers for a dense FFN.
struct RecomputeCost {
  double flops = 0;
  double bytes = 0;

  // Both as FLOP, at the ratio of an H100: 989 TFLOP/s in bf16 beside 3.35 TB/s.
  double weight() const { return flops + 295 * bytes; }
};
RecomputeCost recompute_cost(const ModelConfig& model,
                             std::int64_t sequence_length,
                             DType compute,
                             const Recompute& recompute);

// The same of a token in one layer that computes `groups` again.
RecomputeCost recompute_cost_of_layer(const ModelConfig& model,
                                      std::int64_t sequence_length,
                                      DType compute,
                                      const RecomputeGroups& groups);

// What `memory` leaves to choose among, the cheapest first; each later one needs less memory and
// costs more. Where it is auto, any groups of all layers and more of them in the first so many.
// `dims` are those of the job's first rank, so that every rank has the same list.
std::vector<Recompute> recompute_options(const ModelConfig& model,
                                         const MemoryConfig& memory,
                                         const Dims& dims,
                                         DType compute);

}  // namespace memphis
