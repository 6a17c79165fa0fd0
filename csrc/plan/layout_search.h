// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/dtype.h"
#include "csrc/plan/machine.h"
#include "csrc/plan/step_time.h"
#include "csrc/plan/training_plan.h"

// Which layouts of a config take least time on a machine, of those that fit there.
namespace memphis {

struct TimedConfig {
  Config config;  // resolved
  std::vector<std::string>
      overrides;          // "parallel.tensor=8": what makes it of the one that was given
  std::size_t bytes = 0;  // of the rank that needs most
  StepTime time;
};

// Of a resolved config as it is, with the plan that it has. ConfigError as step_time.
StepTime time_of(const Config& config,
                 DType compute,
                 const Mesh& mesh,
                 const StagePlans& plans,
                 const Machine& machine,
                 double slowest = 1);

// Changes of one key of `parallel`, `batch.micro_batch` or `memory.recompute`, with what follows from
// it, that a step takes less time with than `now`, and that fit: the best first, `most` of them.
std::vector<TimedConfig> faster_changes(const Config& config,
                                        DType compute,
                                        const DeviceRoom& room,
                                        const Machine& machine,
                                        std::int64_t num_ranks,
                                        double now,
                                        std::size_t most = 3);

struct LayoutSearch {
  std::vector<TimedConfig> best;  // the best first
  std::int64_t num_tried = 0;     // valid layouts
  std::int64_t num_planned = 0;   // of which a plan was made: none of the others can be better
};

// Layouts of powers of two: pipeline with its schedules and chunks, tensor, expert, expert_tensor and
// batch.micro_batch, with recomputation as it is found. The first `most` of those that fit. Layouts
// are planned in the order of their time without recomputation, which is never more than with it, so
// that none that was left out is better than those that were found.
LayoutSearch search_layouts(const Config& config,
                            DType compute,
                            const DeviceRoom& room,
                            const Machine& machine,
                            std::int64_t num_ranks,
                            std::size_t most = 10);

}  // namespace memphis
