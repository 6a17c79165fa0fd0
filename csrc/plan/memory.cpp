// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/memory.h"

#include <algorithm>
#include <initializer_list>
#include <limits>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

TensorSpec flat(std::int64_t num_elements, DType dtype) {
  return {{num_elements}, dtype};
}

}  // namespace

std::string human_bytes(std::size_t bytes) {
  constexpr double kKibi = 1024.0;
  double value = static_cast<double>(bytes);
  const char* unit = "B";
  for (const char* next : {"KiB", "MiB", "GiB", "TiB"}) {
    if (value < kKibi) {
      break;
    }
    value /= kKibi;
    unit = next;
  }
  return fmt::format("{:.2f} {}", value, unit);
}

std::size_t MemoryPlan::total_bytes() const {
  return weights_bytes + gradients_bytes + master_bytes + moments_bytes + activations_bytes +
         workspace_bytes + keys_bytes + library_bytes + communication_bytes + sampling_bytes;
}

std::size_t weights_bytes(const ParameterPlan& parameters) {
  std::size_t bytes = 0;
  for (const Segment& segment : parameters.segments) {
    const std::int64_t kept = segment.place ? segment.owned.count : segment.num_elements;
    bytes += arena_bytes(flat(kept, segment.dtype));
  }
  return bytes +
         static_cast<std::size_t>(parameters.num_weight_places) * parameters.weight_place_bytes;
}

std::size_t gradients_bytes(const ParameterPlan& parameters, DType compute) {
  const DType wide = accumulation_dtype(compute);
  return arena_bytes(flat(parameters.num_gradient_elements, wide)) +
         (parameters.num_sum_elements > 0 ? arena_bytes(flat(parameters.num_sum_elements, wide))
                                          : 0);
}

std::size_t master_bytes(const ParameterPlan& parameters) {
  std::size_t bytes = 0;
  for (const Segment& segment : parameters.segments) {
    if (segment.has_state() && segment.dtype != accumulation_dtype(segment.dtype)) {
      bytes += arena_bytes(flat(segment.owned.count, accumulation_dtype(segment.dtype)));
    }
  }
  return bytes;
}

std::size_t moments_bytes(const ParameterPlan& parameters) {
  std::size_t bytes = 0;
  for (const Segment& segment : parameters.segments) {
    bytes += segment.has_state()
                 ? 2 * arena_bytes(flat(segment.owned.count, accumulation_dtype(segment.dtype)))
                 : 0;
  }
  return bytes;
}

std::size_t snapshot_bytes(const ParameterPlan& parameters) {
  std::size_t bytes = 0;
  const auto add = [&](std::int64_t num_elements, DType dtype) {
    bytes += snapshot_piece_bytes(static_cast<std::size_t>(num_elements) * size_of(dtype));
  };
  for (const LogicalParameter& parameter : parameters.logical) {
    const Segment& segment = parameters.segments[static_cast<std::size_t>(parameter.segment)];
    const DType wide = accumulation_dtype(segment.dtype);
    for (const Range& run : parameters.counted_in(parameter)) {
      const Range weights = parameter.local(run);
      add(weights.count, segment.dtype);
      const Range state = intersection(weights, parameter.local(segment.owned));
      add(state.count, wide);
      add(state.count, wide);
      if (segment.dtype != wide) {
        add(state.count, wide);
      }
    }
  }
  return bytes;
}

NormScratch plan_norm_scratch(const ParameterPlan& parameters, DType compute, const Share& share) {
  const DType sums = accumulation_dtype(compute);
  const auto num_runs = static_cast<std::int64_t>(parameters.counted.size());
  const std::int64_t num_layers = parameters.num_layers + 2;
  return {.runs_PW = {{std::max<std::int64_t>(num_runs, 1), kStatWidth}, sums},
          .layers_LW = {{num_layers, kStatWidth}, sums},
          .ranks_PLW = {{share.stage_ranks.count, num_layers, kStatWidth}, sums}};
}

std::string format_memory_table(const MemoryPlan& plan) {
  constexpr const char* kKeys = "keys of sequences";
  struct Row {
    const char* name;
    std::size_t bytes;
  };
  std::string table;
  const auto add = [&](std::initializer_list<Row> rows) {
    for (const auto& [name, bytes] : rows) {
      if (bytes == 0 && std::string_view(name) == kKeys) {
        continue;  // of few runs
      }
      table += fmt::format("  {:<18} {:>16} bytes {:>12}\n", name, bytes, human_bytes(bytes));
    }
  };
  add({{"weights", plan.weights_bytes},
       {"gradients", plan.gradients_bytes},
       {"master weights", plan.master_bytes},
       {"moments", plan.moments_bytes},
       {"activations", plan.activations_bytes},
       {"workspace", plan.workspace_bytes},
       {kKeys, plan.keys_bytes},
       {"library workspace", plan.library_bytes},
       {"communication", plan.communication_bytes},
       {"sampling", plan.sampling_bytes},
       {"total", plan.total_bytes()}});
  table += "  host memory, pinned where the device is a GPU\n";
  add({{"batches", plan.host.batches_bytes},
       {"statistics", plan.host.statistics_bytes},
       {"exchange", plan.host.exchange_bytes},
       {"snapshot", plan.host.snapshot_bytes},
       {"comparison", plan.host.comparison_bytes},
       {"staging", plan.host.staging_bytes},
       {"trace (not pinned)", plan.host.trace_bytes},
       {"total of the host", plan.host.total_bytes()}});
  return table;
}

std::size_t budget_bytes(const MemoryConfig& config) {
  constexpr double kGibi = 1024.0 * 1024.0 * 1024.0;
  return config.budget_gib == 0 ? std::numeric_limits<std::size_t>::max()
                                : static_cast<std::size_t>(config.budget_gib * kGibi);
}

void require_fits(const MemoryPlan& plan,
                  const MemoryDemand& demand,
                  const MemoryConfig& config,
                  Device device,
                  const std::function<std::string()>& ways) {
  if (demand.needed_bytes <= demand.free_bytes) {
    return;
  }
  const bool alone = demand.num_ranks == 1;
  std::string lines = ways ? ways() : "";
  if (lines.ends_with('\n')) {
    lines.pop_back();
  }
  throw PreflightError(fmt::format(
      "{} {} {} and {} has {} free{}\n{}(weights to moments follow from the model, "
      "activations and workspace from the micro-batch and from what memory.recompute keeps); "
      "{}{}lower batch.micro_batch or batch.sequence_length, {}use a smaller model{}",
      alone ? "the run needs" : fmt::format("the {} ranks here need", demand.num_ranks),
      human_bytes(demand.needed_bytes),
      demand.is_host ? "in host memory" : fmt::format("on device {}", name_of(device)),
      demand.pool,
      human_bytes(demand.free_bytes),
      alone ? "" : fmt::format(", which they share; this one's part:"),
      format_memory_table(plan),
      demand.is_budget ? "raise memory.budget_gib, " : "",
      config.recompute_auto ? "" : "set memory.recompute to auto, ",
      alone ? "or " : "start fewer ranks on a machine, or ",
      lines.empty() ? "" : "\n" + lines));
}

}  // namespace memphis
