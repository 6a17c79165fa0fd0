// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/step_graphs.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

// A graph takes some megabytes of both memories. Text without padding, and text that has some in the
// last micro-batch alone, are two kinds; where padding comes anywhere, few steps are alike.
constexpr std::size_t kMaxGraphs = 4;

}  // namespace

std::string graph_refusal(const Config& config, Device device, int num_ranks) {
  if (device == Device::cpu) {
    return "the device is cpu (its work is done when a call returns, so that nothing is left to "
           "launch); set run.device to cuda";
  }
  if (num_ranks > 1) {
    return "there are " + std::to_string(num_ranks) +
           " ranks (a step waits for others where rows and gradients are exchanged); run one rank";
  }
  if (config.metrics.trace) {
    return "metrics.trace is on (it times the phases of a step, and a graph has none); turn it off";
  }
  return "";
}

bool uses_graphs(const Config& config, Device device, int num_ranks) {
  if (config.run.graph == GraphChoice::never) {
    return false;
  }
  const std::string refusal = graph_refusal(config, device, num_ranks);
  if (config.run.graph == GraphChoice::required && !refusal.empty()) {
    throw PreflightError("run.graph is required and " + refusal + ", or set run.graph to auto");
  }
  return refusal.empty();
}

std::int64_t StepGraphs::run(const std::vector<bool>& padding,
                             const std::function<void()>& enqueue) {
  const auto found = std::find_if(recorded_.begin(), recorded_.end(), [&](const Recorded& each) {
    return each.padding == padding;
  });
  if (found == recorded_.end()) {
    enqueue();
    if (recorded_.size() < kMaxGraphs) {
      recorded_.push_back({.padding = padding, .graph = {}});
    }
    return 0;
  }
  if (!found->graph) {
    std::optional<Graph> graph = record(enqueue);
    if (!graph) {
      enqueue();
      return 0;
    }
    found->graph.emplace(*std::move(graph));
  }
  found->graph->launch(stream_);
  return found->graph->num_nodes();
}

std::optional<Graph> StepGraphs::record(const std::function<void()>& enqueue) {
  if (!have_room_) {
    return std::nullopt;
  }
  Capture capture(stream_);
  enqueue();
  std::optional<Graph> graph = capture.end();
  have_room_ = graph.has_value();
  if (!have_room_) {
    const std::string what = fmt::format("the GPU has no memory for the graph of {}", work_);
    if (choice_ == GraphChoice::required) {
      throw PreflightError(what +
                           ", and run.graph is required; set it to auto (the run goes on "
                           "from its last checkpoint), or use a smaller batch.micro_batch");
    }
    log_warning("{}: it is launched kernel by kernel, to the same bits", what);
  }
  return graph;
}

}  // namespace memphis
