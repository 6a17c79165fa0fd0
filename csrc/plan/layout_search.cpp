// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/layout_search.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include "csrc/config/schema.h"
#include "csrc/config/sources.h"
#include "csrc/config/validate.h"
#include "csrc/core/error.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/run_work.h"
#include "csrc/plan/stage_costs.h"

namespace memphis {
namespace {

using Change = std::function<void(Config&)>;

// Nothing where it is no config of so many ranks.
std::optional<Config> resolved(Config changed, std::int64_t num_ranks) {
  changed.parallel.data = 0;  // what the others leave
  try {
    resolve(changed, {.name = "config", .places = {}}, num_ranks);
    return changed;
  } catch (const ConfigError&) {
    return std::nullopt;
  }
}

class Planner {
 public:
  Planner(const Config& given,
          DType compute,
          const DeviceRoom& room,
          const Machine& machine,
          std::int64_t num_ranks)
      : given_(given), compute_(compute), room_(room), machine_(machine), num_ranks_(num_ranks) {}

  std::optional<Config> resolve(const Config& changed) const {
    return resolved(changed, num_ranks_);
  }
  // What no recomputation would take if no rank of a pipeline waited; nothing where what is always
  // there has no room.
  std::optional<double> least_without_waiting(const Config& config) const {
    const RunDescription run = describe_run(config, compute_, num_ranks_);
    if (least_state_bytes(run) > static_cast<double>(room_.budget_bytes)) {
      return std::nullopt;
    }
    PipelineSchedule schedule;
    schedule.shape = pipeline_shape(run.parallel, run.num_micro_batches());
    return step_time(run_work(run, &schedule), machine_).seconds;
  }

  // What no recomputation would take.
  std::optional<double> least(const Config& config) const {
    try {
      return step_time(run_work(describe_run(config, compute_, num_ranks_)), machine_).seconds;
    } catch (const ConfigError&) {
      return std::nullopt;
    }
  }

  // Nothing where it does not fit.
  std::optional<TimedConfig> plan(const Config& config) const {
    const Mesh mesh(config.parallel, num_ranks_);
    try {
      const Config smallest = computing_most_again(config);
      const auto bytes_of_first = [&] {
        return plan_training(smallest, compute_, room_, mesh, 0).memory.needed_bytes(room_.device);
      };
      if (smallest.memory.recompute_auto != config.memory.recompute_auto &&
          (bytes_of_first() > room_.budget_bytes ||
           most_of(plan_all_stages(smallest, compute_, room_, mesh)) > room_.budget_bytes)) {
        return std::nullopt;
      }
      const StagePlans plans = plan_all_stages(config, compute_, room_, mesh);
      if (most_of(plans) > room_.budget_bytes) {
        return std::nullopt;
      }
      return TimedConfig{.config = config,
                         .overrides = overrides_between(given_, config),
                         .bytes = most_of(plans),
                         .time = time_of(config, compute_, mesh, plans, machine_)};
    } catch (const ConfigError&) {
      return std::nullopt;
    }
  }

 private:
  static std::size_t most_of(const StagePlans& plans) {
    return *std::max_element(plans.bytes.begin(), plans.bytes.end());
  }

  const Config& given_;
  DType compute_;
  const DeviceRoom& room_;
  const Machine& machine_;
  std::int64_t num_ranks_;
};

struct Candidate {
  Config config;
  double least = 0;
};

bool is_shorter(const TimedConfig& a, const TimedConfig& b) {
  return a.time.seconds < b.time.seconds;
}

// The `most` best of the candidates that take less time than `limit`.
std::vector<TimedConfig> best_of(const Planner& planner,
                                 std::vector<Candidate> candidates,
                                 double limit,
                                 std::size_t most,
                                 std::int64_t& num_planned) {
  std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) {
    return a.least < b.least;
  });
  std::vector<TimedConfig> best;
  for (const Candidate& candidate : candidates) {
    const double bound = best.size() == most ? best.back().time.seconds : limit;
    if (candidate.least >= bound) {
      break;
    }
    const std::optional<double> least = planner.least(candidate.config);
    if (!least || *least >= bound) {
      continue;
    }
    ++num_planned;
    std::optional<TimedConfig> timed = planner.plan(candidate.config);
    if (!timed || timed->time.seconds >= bound) {
      continue;
    }
    best.insert(std::upper_bound(best.begin(), best.end(), *timed, is_shorter), std::move(*timed));
    best.resize(std::min(best.size(), most));
  }
  return best;
}

// Layers as evenly as they can be beside the head.
void balance(Config& config) {
  const MicroBatchFlops flops = micro_batch_flops(config.model, config.batch, DType::bf16);
  const std::optional<StageLayout> better =
      better_layout(stage_layout(config.model, config.parallel),
                    flops,
                    make_schedule(pipeline_shape(config.parallel,
                                                 config.batch.global_batch / config.parallel.data /
                                                     config.batch.micro_batch)));
  if (!better) {
    return;
  }
  config.parallel.stages.clear();
  for (const StageLayers& stage : *better) {
    config.parallel.stages.push_back(stage.layers.count);
  }
}

// Of so many ranks: with fewer tokens each, products of a layer are too small, and what a shorter
// sequence takes need not be shared out.
std::int64_t most_context(const Config& config, std::int64_t ranks) {
  constexpr std::int64_t kFewestTokens = 2048;
  return std::max<std::int64_t>(std::min(ranks, config.batch.sequence_length / kFewestTokens),
                                config.parallel.context);
}

std::vector<Change> changes_of(const Config& config) {
  std::vector<Change> changes;
  for (std::int64_t ParallelConfig::*degree : {&ParallelConfig::context,
                                               &ParallelConfig::tensor,
                                               &ParallelConfig::expert,
                                               &ParallelConfig::expert_tensor,
                                               &ParallelConfig::pipeline}) {
    changes.push_back([=](Config& changed) {
      changed.parallel.*degree *= 2;
      changed.parallel.stages.clear();
    });
    if (config.parallel.*degree % 2 == 0) {
      changes.push_back([=](Config& changed) {
        changed.parallel.*degree /= 2;
        changed.parallel.stages.clear();
      });
    }
  }
  changes.push_back([](Config& changed) { changed.batch.micro_batch *= 2; });
  if (config.batch.micro_batch % 2 == 0) {
    changes.push_back([](Config& changed) { changed.batch.micro_batch /= 2; });
  }
  if (config.parallel.pipeline > 1) {
    for (const std::int64_t chunks : {2, 4, 8}) {
      changes.push_back([=](Config& changed) {
        changed.parallel.schedule = ScheduleKind::interleaved;
        changed.parallel.chunks = chunks;
        changed.parallel.stages.clear();
      });
    }
    for (const ScheduleKind kind :
         {ScheduleKind::one_f_one_b, ScheduleKind::zb_h1, ScheduleKind::zbv}) {
      changes.push_back([=](Config& changed) {
        changed.parallel.schedule = kind;
        changed.parallel.chunks = 0;
        changed.parallel.stages.clear();
      });
    }
    // Stages as balanced as they can be, for the head's sake.
    changes.push_back([](Config& changed) { balance(changed); });
  }
  if (!config.memory.recompute_auto) {
    changes.push_back([](Config& changed) {
      changed.memory.recompute_auto = true;
      changed.memory.recompute = {};
      changed.memory.recompute_layers = 0;
    });
  }
  for (const std::int64_t zero : {0, 1}) {
    if (zero != config.parallel.zero) {
      changes.push_back([=](Config& changed) { changed.parallel.zero = zero; });
    }
  }
  if (!config.parallel.sequence_parallel) {
    changes.push_back([](Config& changed) { changed.parallel.sequence_parallel = true; });
  }
  return changes;
}

}  // namespace

StepTime time_of(const Config& config,
                 DType compute,
                 const Mesh& mesh,
                 const StagePlans& plans,
                 const Machine& machine,
                 double slowest) {
  return step_time(run_work(config, compute, mesh, plans), machine, {}, slowest);
}

std::vector<TimedConfig> faster_changes(const Config& config,
                                        DType compute,
                                        const DeviceRoom& room,
                                        const Machine& machine,
                                        std::int64_t num_ranks,
                                        double now,
                                        std::size_t most) {
  // Less is within what rounding and the choice of recomputation make.
  constexpr double kWorthSaying = 0.995;
  const Planner planner(config, compute, room, machine, num_ranks);
  std::vector<Candidate> candidates;
  for (const Change& change : changes_of(config)) {
    Config changed = config;
    change(changed);
    std::optional<Config> valid = planner.resolve(changed);
    if (!valid || *valid == config) {
      continue;
    }
    if (const std::optional<double> least = planner.least_without_waiting(*valid)) {
      candidates.push_back({std::move(*valid), *least});
    }
  }
  std::int64_t num_planned = 0;
  return best_of(planner, std::move(candidates), kWorthSaying * now, most, num_planned);
}

LayoutSearch search_layouts(const Config& config,
                            DType compute,
                            const DeviceRoom& room,
                            const Machine& machine,
                            std::int64_t num_ranks,
                            std::size_t most) {
  const Planner planner(config, compute, room, machine, num_ranks);
  std::vector<Candidate> candidates;
  LayoutSearch result;
  const auto powers = [](std::int64_t up_to) {
    std::vector<std::int64_t> values;
    for (std::int64_t value = 1; value <= up_to; value *= 2) {
      values.push_back(value);
    }
    return values;
  };
  struct Schedule {
    ScheduleKind kind;
    std::int64_t chunks;
  };
  const std::vector<Schedule> one_rank = {{ScheduleKind::one_f_one_b, 0}};
  std::vector<Schedule> schedules = {{ScheduleKind::one_f_one_b, 0},
                                     {ScheduleKind::interleaved, 2},
                                     {ScheduleKind::interleaved, 4},
                                     {ScheduleKind::interleaved, 8},
                                     {ScheduleKind::zb_h1, 0},
                                     {ScheduleKind::zbv, 0}};
  // The given one's chunks need be no power of two.
  if (config.parallel.schedule == ScheduleKind::interleaved) {
    schedules.push_back({ScheduleKind::interleaved, config.parallel.chunks});
  }
  const ModelConfig& model = config.model;
  const auto consider = [&](const Config& changed) {
    const std::optional<Config> valid = planner.resolve(changed);
    if (!valid) {
      return;
    }
    if (const std::optional<double> least = planner.least_without_waiting(*valid)) {
      ++result.num_tried;
      candidates.push_back({*valid, *least});
    }
  };
  // Every combination of the degrees, for which every schedule and micro-batch.
  const auto each_schedule = [&](const ParallelConfig& degrees) {
    for (const std::int64_t micro_batch : powers(4)) {
      for (const Schedule& schedule : degrees.pipeline == 1 ? one_rank : schedules) {
        Config changed = config;
        changed.parallel = degrees;
        changed.parallel.schedule = schedule.kind;
        changed.parallel.chunks = schedule.chunks;
        changed.parallel.stages.clear();
        changed.parallel.zero = std::min<std::int64_t>(degrees.zero, 1);
        changed.batch.micro_batch = micro_batch;
        changed.memory.recompute_auto = true;
        changed.memory.recompute = {};
        changed.memory.recompute_layers = 0;
        consider(changed);
      }
    }
  };
  ParallelConfig degrees = config.parallel;
  for (const std::int64_t pipeline : powers(std::min(num_ranks, model.num_layers))) {
    degrees.pipeline = pipeline;
    const std::int64_t of_stage = num_ranks / pipeline;
    for (const std::int64_t tensor : powers(std::min(of_stage, model.num_heads))) {
      degrees.tensor = tensor;
      for (const std::int64_t context : powers(most_context(config, of_stage / tensor))) {
        degrees.context = context;
        for (const std::int64_t expert : powers(std::min(of_stage, model.num_experts))) {
          degrees.expert = expert;
          for (const std::int64_t pieces : powers(std::min(of_stage / expert, tensor))) {
            degrees.expert_tensor = pieces;
            each_schedule(degrees);
          }
        }
      }
    }
  }
  result.best = best_of(planner,
                        std::move(candidates),
                        std::numeric_limits<double>::infinity(),
                        most,
                        result.num_planned);
  return result;
}

}  // namespace memphis
