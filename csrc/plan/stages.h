// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/plan/range.h"
#include "csrc/plan/schedule.h"

// Which part of the model each stage of a pipeline holds.
namespace memphis {

// A run of layers, which may be empty: such a stage hands on what it receives, and any schedule
// runs it, because schedules do not depend on what a stage does.
struct StageLayers {
  Range layers = {};
  bool embedding = false;  // in the first stage
  bool head = false;       // with the final norm and the loss, in the last stage

  bool operator==(const StageLayers&) const = default;
};

// "embedding, layers 0 to 7", "layer 8", "head", "nothing".
std::string describe(const StageLayers& stage);

// One entry a stage, in the order of the model. Each layer is in one of them.
using StageLayout = std::vector<StageLayers>;

// As many layers in each stage; what is left over, one each in the first stages, because the last
// has the head too. ConfigError where there are more stages than layers: stages without layers must
// be asked for.
StageLayout even_stages(std::int64_t num_layers, std::int64_t num_stages);

// Explicit layouts: num_layers[s] layers in stage s, with embedding and head in the first and last
// stage; 0 is a stage without layers. ConfigError as require_complete.
StageLayout stages_of_counts(std::int64_t num_layers, const std::vector<std::int64_t>& counts);

// A layout as written by the user. ConfigError, which lists all layers that are missing, doubled or
// not of the model, unless `layout` has num_stages stages in the order of the model, each of the
// layers once, the embedding in the first stage and the head in the last.
void require_complete(const StageLayout& layout, std::int64_t num_layers, std::int64_t num_stages);

// What a config asks for. ConfigError as even_stages and require_complete.
StageLayout stage_layout(const ModelConfig& model, const ParallelConfig& parallel);

// Of one micro-batch, in any unit.
struct LayerCosts {
  std::vector<double> layers;
  double embedding = 0;
  double head = 0;
};

double cost_of(const StageLayers& stage, const LayerCosts& costs);
// Of all stages of each rank.
std::vector<double> rank_costs(const StageLayout& layout,
                               const LayerCosts& costs,
                               StagePlacement placement,
                               std::int64_t num_ranks);

// The layout whose largest stage is least; of those, the one with the least sum of squares, and of
// equals one with more layers in later stages, whose ranks hold fewer micro-batches. Stages may be
// empty. Time: stages x layers x layers.
StageLayout balance_stages(const LayerCosts& costs, std::int64_t num_stages);

// The layout whose largest rank is least, for num_chunks stages a rank: exactly so if all layers
// cost the same or a rank has one chunk; else the best of a search that takes little time,
// which no move of a layer from a stage to another betters and which is at least as good as
// balance_stages. The same on every rank. ContractError where the placement has no such chunks.
StageLayout balance_ranks(const LayerCosts& costs,
                          StagePlacement placement,
                          std::int64_t num_ranks,
                          std::int64_t num_chunks);

}  // namespace memphis
