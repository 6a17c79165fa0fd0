// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/step_graphs.h"

#include <algorithm>
#include <cstddef>

#include "csrc/core/error.h"

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
    Capture capture(stream_);
    enqueue();
    found->graph.emplace(capture.end());
  }
  found->graph->launch(stream_);
  return found->graph->num_nodes();
}

}  // namespace memphis
