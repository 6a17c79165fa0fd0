// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/dtype.h"
#include "csrc/plan/recompute.h"
#include "csrc/plan/schedule_simulation.h"
#include "csrc/plan/stages.h"

// What the stages of a pipeline cost beside each other, in FLOP, and which layout of them takes a
// step least time.
namespace memphis {

// Of the three passes that csrc/plan/schedule.h calls F, I and W.
struct PassFlops {
  double forward = 0;
  double backward_inputs = 0;
  double backward_weights = 0;

  double total() const { return forward + backward_inputs + backward_weights; }
  PassFlops& operator+=(const PassFlops& other);
};

// FLOP of one micro-batch, counted as model_flops_per_token does, on all ranks that share it.
//
// Layers     a product with weights is there once in each pass; attention's scores, which have no
//            weights, once in F and twice in I. What is computed again is so in I.
// Head       all of it is in I: the loss is formed with its gradient, a chunk of logits at a time,
//            which is used up at once for the gradients of both operands. Without recomputation the
//            sum over all is that of model_flops_per_token.
// Embedding  a lookup: nothing.
struct MicroBatchFlops {
  std::vector<PassFlops> layers;
  PassFlops embedding;
  PassFlops head;
};
MicroBatchFlops micro_batch_flops(const ModelConfig& model,
                                  const BatchConfig& batch,
                                  DType compute,
                                  const Recompute& recompute = {});

// Of all three passes.
LayerCosts layer_costs(const MicroBatchFlops& flops);
// For simulate(), with the number of layers as a stage's activation. Messages cost nothing.
PipelineCosts pipeline_costs(const StageLayout& layout, const MicroBatchFlops& flops);
// The same work, as much of each pass in each stage.
PipelineCosts evened(const PipelineCosts& costs);

struct LayoutPrice {
  double imbalance = 1;     // the largest rank's FLOP over the mean of all
  double bubble_share = 0;  // PipelineSimulation's
  double makespan = 0;      // of a step, in FLOP of one rank after the other
};
// `schedule` does not depend on the layout.
LayoutPrice price(const StageLayout& layout,
                  const MicroBatchFlops& flops,
                  const PipelineSchedule& schedule);

// The one of balance_ranks and balance_stages under which a step takes less time, if that is less
// than under `layout`; nothing if it is not.
std::optional<StageLayout> better_layout(const StageLayout& layout,
                                         const MicroBatchFlops& flops,
                                         const PipelineSchedule& schedule);

}  // namespace memphis
