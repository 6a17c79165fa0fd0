// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "csrc/core/device.h"
#include "csrc/plan/activations.h"
#include "csrc/plan/host_memory.h"
#include "csrc/plan/parameters.h"
#include "csrc/plan/share.h"

namespace memphis {

// Every byte that a rank holds on its device, by category, from the config alone; and, apart from
// these, what it holds in the memory of its machine.
struct MemoryPlan {
  std::size_t weights_bytes = 0;
  std::size_t gradients_bytes = 0;
  std::size_t master_bytes = 0;  // 0 where the weights are f32: they are their own master
  std::size_t moments_bytes = 0;
  std::size_t activations_bytes = 0;
  std::size_t workspace_bytes = 0;
  std::size_t keys_bytes = 0;           // of whole sequences, where ranks share them out
  std::size_t library_bytes = 0;        // cuBLASLt's workspace
  std::size_t communication_bytes = 0;  // CommunicationPlan's
  std::size_t sampling_bytes = 0;       // activations of the model that writes samples of text
  HostMemoryPlan host = {};

  // On its device, without `host`.
  std::size_t total_bytes() const;
  // Of these, what this program allocates there by device_allocate: libraries do the rest.
  std::size_t allocated_bytes() const {
    return total_bytes() - library_bytes - communication_bytes;
  }
  // Of the memory that `device` has: the CPU's is the machine's, which `host` is taken from too.
  std::size_t needed_bytes(Device device) const {
    return total_bytes() + (device == Device::cpu ? host.total_bytes() : 0);
  }
};

// Weights of each segment in its dtype, aligned: all that a rank has of them, or under ZeRO-3 what
// it keeps, and the places where layers are whole in turn.
std::size_t weights_bytes(const ParameterPlan& parameters);
// Where gradients are formed, and under ZeRO-2 the sums that a rank keeps.
std::size_t gradients_bytes(const ParameterPlan& parameters, DType compute);
// Master weights of the segments whose dtype is narrower than the accumulation dtype, and moments:
// of the elements whose state this rank keeps.
std::size_t master_bytes(const ParameterPlan& parameters);
std::size_t moments_bytes(const ParameterPlan& parameters);

// Of what a rank writes of a checkpoint (ParameterPlan::counted), weights and the optimizer's state: a
// copy of it in host memory, each piece at a multiple of the widest type.
constexpr std::size_t snapshot_piece_bytes(std::size_t bytes) {
  return (bytes + sizeof(double) - 1) / sizeof(double) * sizeof(double);
}
std::size_t snapshot_bytes(const ParameterPlan& parameters);

// Norms of runs of the gradient, of layers, and of the layers of all ranks of a stage, on the way
// to the norm of all of it. One a row, because operands of ops are 16-byte aligned; the rest of a
// row is zero. Layers are those of the whole model, with what comes before and after them: by this
// way the norm has the same bits whatever stages the model is cut into.
struct NormScratch {
  TensorSpec runs_PW;
  TensorSpec layers_LW;
  TensorSpec ranks_PLW;
  std::size_t bytes() const {
    return arena_bytes(runs_PW) + arena_bytes(layers_LW) + arena_bytes(ranks_PLW);
  }
};
NormScratch plan_norm_scratch(const ParameterPlan& parameters, DType compute, const Share& share);

// "1.50 GiB"
std::string human_bytes(std::size_t bytes);

// The table that a run prints before its first step.
std::string format_memory_table(const MemoryPlan& plan);

// What MemoryConfig::budget_gib lets a rank take; the largest number where it says nothing.
std::size_t budget_bytes(const MemoryConfig& config);

// What a rank has of an H100 of 80 GB: of the 81,559 MiB that its driver shows, the context and the
// kernels are taken to need 1 GiB, because in NVIDIA/nccl issue 1685 a process on one has taken
// 1.06 GB before the first exchange of rows. For plans that are made where there is no such GPU.
constexpr std::size_t kH100Bytes = std::size_t{81559 - 1024} << 20;

// A memory, and what all ranks that share it will take of it.
struct MemoryDemand {
  std::string pool;  // "this machine"
  std::size_t free_bytes = 0;
  std::int64_t num_ranks = 1;
  std::size_t needed_bytes = 0;  // of all of them
  bool is_budget = false;        // memory.budget_gib, which can be raised
  bool is_host = false;          // of the host's memory, beside a device of another
};

// Throws PreflightError, with the table of a rank, `plan`, and the nearest knobs, if `demand`
// exceeds what there is. `ways`, if any, are lines behind that: what csrc/plan/ways_to_fit.h says.
void require_fits(const MemoryPlan& plan,
                  const MemoryDemand& demand,
                  const MemoryConfig& config,
                  Device device,
                  const std::function<std::string()>& ways = {});

}  // namespace memphis
