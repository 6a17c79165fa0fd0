// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "csrc/config/config.h"
#include "csrc/core/dtype.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/training_plan.h"

namespace memphis {

// What a step of a plan costs beside the model's own FLOP. All of it is counted and none of it is
// measured.
//
// `price` is one number for the order among plans of one model: how much longer than the model's
// own FLOP, spread evenly over the ranks, a step would take if nothing ran beside anything else. It
// is no time, because much of what it adds up is hidden behind work, and because the work itself
// runs at less than the rates below. Its terms, as parts of the model's FLOP of a step on a rank:
//
//   again      FLOP computed again, and the bytes read and written for it (RecomputeCost)
//   idle       what ranks of a pipeline wait: the bubble, and stages that differ from each other
//   weights    each micro-batch reads the weights three times, and the gradients are read and
//              written once
//   traffic    what a rank sends: sums and gathers over the ranks of a layer, rows to experts,
//              messages between stages, gradients and weights over replicas
//
// Bytes are weighed as FLOP at the rates that an H100 of 989 TFLOP/s in bf16 has for them: 3.35
// TB/s of its memory, 450 GB/s over NVLink in one direction, and 50 GB/s over the network, which a
// group takes that does not lie on one machine of 8 GPUs.
struct StepCost {
  std::int64_t num_micro_batches = 0;  // of a rank
  double again_share = 0;              // FLOP computed again, of the model's
  double bubble_share = 0;             // PipelineSimulation's
  double messages = 0;                 // that the rank sends to other stages in a step
  double sent_bytes = 0;               // by the rank in a step, these among them
  double price = 0;
};

// `plan` is that of the rank that `largest_rank` is the place of along Axis::pipeline.
StepCost step_cost(const Config& config, DType compute, const Mesh& mesh, const StagePlans& plans);

// "8 micro-batches, 10.49 % of the model's FLOP again, a bubble of 6.44 %, 1.2 GiB sent by a rank".
std::string describe(const StepCost& cost);

}  // namespace memphis
