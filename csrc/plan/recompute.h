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

// What is computed again, and in which layers: the first num_layers.
struct Recompute {
  RecomputeGroups groups;
  std::int64_t num_layers = 0;

  RecomputeGroups of_layer(std::int64_t layer) const {
    return layer < num_layers ? groups : RecomputeGroups{};
  }
  bool any() const { return num_layers > 0 && groups.any(); }
  bool operator==(const Recompute&) const = default;
};

// "norm and geglu in the first 3 of 64 layers"
std::string describe(const Recompute& recompute, std::int64_t num_layers);

// What it costs of a token, in the layers that do so: multiplications and additions, and bytes that
// ops without products read and write.
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

// What `memory` leaves to choose among, the cheapest first; each later one needs less memory and
// costs more. `dims` are those of the job's first rank, so that every rank has the same list.
std::vector<Recompute> recompute_options(const ModelConfig& model,
                                         const MemoryConfig& memory,
                                         const Dims& dims,
                                         DType compute);

}  // namespace memphis
