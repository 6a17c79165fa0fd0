// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/dtype.h"
#include "csrc/plan/step_cost.h"
#include "csrc/plan/training_plan.h"

// What could be changed of a config whose plan has no room.
namespace memphis {

// A change of a config, what becomes of its plan, and what a step then costs.
struct WayToFit {
  Config config;  // resolved
  // "parallel.tensor=8": what makes it of the one that was given.
  std::vector<std::string> overrides;
  std::int64_t num_ranks = 1;  // of the job, each with as much memory
  std::size_t bytes = 0;       // of the rank that needs most
  StepCost cost;
  std::string risk;  // half a sentence; empty: none that is not in its cost
};

struct WaysToFit {
  StepCost given;              // of the config as it is
  std::vector<WayToFit> ways;  // three at most, in the order below
  // Where there is none on as many ranks: of all that was tried on these, what needs least.
  std::optional<WayToFit> smallest;
};

// Nothing where `config`, which is resolved, fits within room.budget_bytes on each of its ranks.
//
// Tried are the knobs below, each alone, and each two of them that do not do it alone:
//
//   memory.recompute          auto, where it is fixed
//   batch.micro_batch         halved, and 1 from an odd number on
//   memory.head_rows          2048 and 1024, where there are more
//   parallel.zero             more, to the largest that there is
//   parallel.tensor           twice and four times as many, as parallel.expert and expert_tensor
//   parallel.pipeline         twice to eight times as many
//   parallel.overlap_experts  auto, where it is required: without pairs of passes
//   parallel.expert_buffer    2 and 1.5, where it is 0: a run that routes more to a rank ends
//
// then, if these do not give three, more ranks: the least power of two times as many on which the
// config fits, as it is, with one degree raised or two that take all of it between them, and the
// most shared out (parallel.zero) or not; on more than 16 times as many, as it is or with one degree
// raised. And then, behind another way and never alone, a batch.sequence_length that is halved,
// because it trains another model.
//
// A way that fits has been through the validation that a config goes through (parse_config), and
// its plan is that of plan_all_stages. The cheapest value of each knob, or pair of them, is
// offered, in the order of StepCost::price; more ranks come behind, and shorter sequences last.
// Pure; for Grok-1 on 512 ranks it takes a few seconds.
WaysToFit ways_to_fit(const Config& config,
                      DType compute,
                      const DeviceRoom& room,
                      std::int64_t num_ranks);

// Lines for the user: each way as overrides to paste, its bytes and its cost, beside the cost of
// the config as it is. Empty where there is nothing to say.
std::string describe(const WaysToFit& ways, std::int64_t num_ranks);

}  // namespace memphis
