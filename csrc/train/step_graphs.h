// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/device.h"

namespace memphis {

// Why the steps of a run cannot be launched as graphs, and what to do about it, as the rest of a
// sentence; empty where they can.
std::string graph_refusal(const Config& config, Device device, int num_ranks);
// Whether they are: run.graph, with its `auto` decided. PreflightError where it asks for what cannot
// be.
bool uses_graphs(const Config& config, Device device, int num_ranks);

// The work of steps, recorded as graphs of the GPU and launched as one: by the time that the GPU is
// through with a small kernel the CPU has not launched the next.
//
// A graph holds the calls of the step that it was recorded in. What differs from step to step it finds
// in page-locked memory, but for padding: ops on padded tokens are other calls. So there is a graph
// for each of the first few kinds of steps, by which micro-batches have padding. The first step of a
// kind is enqueued, as it loads kernels and lets cuBLASLt choose, which cannot be recorded; the second
// is recorded and launched, later ones are launched. Steps of further kinds are enqueued, and so are
// those for whose graph the GPU has no memory, unless run.graph is required.
class StepGraphs {
 public:
  // `work`, for what is said of them: "the gradients". Not GraphChoice::never.
  StepGraphs(Stream stream, GraphChoice choice, std::string_view work)
      : stream_(stream), choice_(choice), work_(work) {}

  // Does the work of a step that has padding in those of its micro-batches: calls `enqueue`, which
  // puts it on the stream and waits for nothing, or launches what it has put there before. Returns
  // the nodes of the graph, or 0 if there was none. PreflightError where the GPU has no memory for one
  // that is required.
  std::int64_t run(const std::vector<bool>& padding, const std::function<void()>& enqueue);

 private:
  struct Recorded {
    std::vector<bool> padding;
    std::optional<Graph> graph;  // none: one such step was enqueued
  };

  // Has work recorded that is to be done now. Nothing where it has to be enqueued.
  std::optional<Graph> record(const std::function<void()>& enqueue);

  Stream stream_;
  GraphChoice choice_;
  std::string_view work_;
  std::vector<Recorded> recorded_;
  bool have_room_ = true;  // on the GPU, as far as is known
};

}  // namespace memphis
