// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/plan/activations.h"
#include "csrc/plan/communication.h"
#include "csrc/plan/dims.h"
#include "csrc/plan/memory.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/message_buffers.h"
#include "csrc/plan/parameters.h"
#include "csrc/plan/schedule_messages.h"
#include "csrc/plan/share.h"

namespace memphis {

// All that a forward pass without a backward one needs beside the weights.
struct InferencePlan {
  Dims dims;
  ActivationPlan activations;
  PipelineSchedule schedule;  // of one micro-batch
  MessageBuffers messages;

  std::size_t activation_bytes() const { return activations.activation_bytes(); }
  std::size_t workspace_bytes() const { return activations.workspace_bytes() + messages.bytes(); }
  std::size_t bytes() const { return activation_bytes() + workspace_bytes(); }
};
// On one rank. With a `capacity`, passes go on with sequences of which a KeyValueCache has so many
// positions; 0: each sequence begins with its first position, and has as many as a pass.
InferencePlan plan_inference(const ModelConfig& model,
                             std::int64_t num_sequences,
                             std::int64_t sequence_length,
                             DType compute,
                             Device device,
                             std::int64_t capacity = 0);

// What of a device a plan is made for.
struct DeviceRoom {
  Device device = Device::cpu;
  // What libraries take for themselves (kernels::matmul_workspace_bytes), which this folder does
  // not see.
  std::size_t library_bytes = 0;
  // What a rank may take altogether. It decides between what is kept and what is computed again;
  // a plan that exceeds it is made nevertheless (see require_fits).
  std::size_t budget_bytes = 0;
  // Of the host's memory, beside a GPU. It decides whether checkpoints are saved in the background.
  std::size_t host_budget_bytes = std::numeric_limits<std::size_t>::max();
};

// All that one rank's memory and work follow from, before a device is touched. It is derived here,
// once, and handed down.
struct TrainingPlan {
  Share share;
  Dims dims;
  std::int64_t num_micro_batches = 0;  // of a step, on this rank
  PipelineSchedule schedule;           // of a step
  // Forward passes of as many micro-batches, or of one where there is one stage.
  PipelineSchedule validation;
  MessageBuffers messages;  // of both
  ParameterPlan parameters;
  ActivationPlan activations;
  NormScratch norms;
  std::size_t recompute_option = 0;       // see plan_training
  bool overlaps_experts = false;          // forward and backward passes are done in pairs
  bool saves_in_background = false;       // and has room for a snapshot
  std::optional<InferencePlan> sampling;  // of the model that writes samples of text
  CommunicationPlan communication;
  MemoryPlan memory;
};
// Of rank `rank` of `mesh`, with the first way to compute again and to pair passes that fits, from
// number `option` on, or the last. These are recompute_options, and where parallel.overlap_experts
// is auto each of them with pairs and then without: what is computed again costs more than pairs
// give. Ranks are to do the same, because of the collectives in it, and may have room for more or
// less than others, or other stages: they have agreed when all come to the largest number that any
// came to before. So it is with checkpoint.background: where it is auto, a snapshot goes before
// anything is computed again for it, and all leave it out (`background` false) if one has no room.
TrainingPlan plan_training(const Config& config,
                           DType compute,
                           const DeviceRoom& room,
                           const Mesh& mesh,
                           std::int64_t rank,
                           std::size_t option = 0,
                           bool background = true);

// What training does while a checkpoint is written, and why: a line.
std::string describe_saves(const TrainingPlan& plan, const CheckpointConfig& config);

// Whether rows travel to experts beside other work, what it takes, and why not: a line.
std::string describe_expert_overlap(const TrainingPlan& plan, const Config& config);

// Whether what tensor ranks exchange travels beside their products, in how many chunks, and why not: a
// line.
std::string describe_tensor_overlap(const TrainingPlan& plan);

// The plans of the first rank at each place along Axis::pipeline, which agree on what is computed
// again. One of them is kept: each has the whole schedule.
struct StagePlans {
  TrainingPlan largest;            // of the rank that takes most memory; of equals the first
  std::int64_t largest_rank = 0;   // its place
  std::vector<std::size_t> bytes;  // MemoryPlan::needed_bytes at each place
};
StagePlans plan_all_stages(const Config& config,
                           DType compute,
                           const DeviceRoom& room,
                           const Mesh& mesh);

// The config with what needs least memory, where what is computed again is left open: where that has
// no room nothing has, and the plans between need not be made.
Config computing_most_again(Config config);

}  // namespace memphis
