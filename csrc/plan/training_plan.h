// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/plan/activations.h"
#include "csrc/plan/dims.h"
#include "csrc/plan/memory.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/parameters.h"
#include "csrc/plan/share.h"

namespace memphis {

// All that a forward pass without a backward one needs beside the weights.
struct InferencePlan {
  Dims dims;
  ActivationPlan activations;

  std::size_t bytes() const {
    return activations.activation_bytes() + activations.workspace_bytes();
  }
};
InferencePlan plan_inference(const ModelConfig& model,
                             std::int64_t num_sequences,
                             std::int64_t sequence_length,
                             DType compute,
                             Device device,
                             const Share& share = {});

// All that one rank's memory and work follow from, before a device is touched. It is derived here,
// once, and handed down.
struct TrainingPlan {
  Share share;
  Dims dims;
  ParameterPlan parameters;
  ActivationPlan activations;
  std::optional<InferencePlan> sampling;  // of the model that writes samples of text
  MemoryPlan memory;
};
// Of rank `rank` of `mesh`. `library_bytes`: what the libraries of `device` take for themselves
// (kernels::matmul_workspace_bytes), which this folder does not see.
TrainingPlan plan_training(const Config& config,
                           Device device,
                           DType compute,
                           const Mesh& mesh,
                           std::int64_t rank,
                           std::size_t library_bytes);

}  // namespace memphis
