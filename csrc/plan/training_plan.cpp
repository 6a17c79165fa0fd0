// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/training_plan.h"

#include <vector>

namespace memphis {

InferencePlan plan_inference(const ModelConfig& model,
                             std::int64_t num_sequences,
                             std::int64_t sequence_length,
                             DType compute,
                             Device device,
                             const Share& share) {
  InferencePlan plan;
  plan.dims = make_dims(model, num_sequences, sequence_length, share);
  plan.activations = plan_activations(plan.dims, compute, Keep::one_layer, device);
  return plan;
}

TrainingPlan plan_training(const Config& config,
                           DType compute,
                           const DeviceRoom& room,
                           const Mesh& mesh,
                           std::int64_t rank,
                           std::optional<std::size_t> option) {
  TrainingPlan plan;
  plan.share = make_share(config.parallel, mesh, rank);
  const auto dims_of = [&](const Share& share) {
    return make_dims(config.model, config.batch.micro_batch, config.batch.sequence_length, share);
  };
  plan.dims = dims_of(plan.share);
  plan.num_micro_batches =
      SampleShare(config.batch, plan.share).num_sequences() / config.batch.micro_batch;
  plan.actions =
      make_actions({.num_micro_batches = plan.num_micro_batches}, mesh.index(Axis::pipeline, rank));
  plan.parameters = plan_parameters(config.model, compute, plan.share);
  if (config.metrics.sample_every > 0) {
    plan.sampling = plan_inference(
        config.model, 1, config.batch.sequence_length, compute, room.device, plan.share);
  }
  const std::vector<Recompute> options = recompute_options(
      config.model, config.memory, dims_of(make_share(config.parallel, mesh, 0)), compute);
  plan.activations = plan_activations(plan.dims, compute, Keep::all_layers, room.device);
  for (std::size_t i = option.value_or(0); i < options.size(); ++i) {
    plan.recompute_option = i;
    plan.activations.recompute = options[i];
    plan.memory = plan_training_memory(
        plan.parameters, plan.activations, compute, plan.share, room.library_bytes);
    plan.memory.sampling_bytes = plan.sampling ? plan.sampling->bytes() : 0;
    if (option || plan.memory.total_bytes() <= room.budget_bytes) {
      break;
    }
  }
  return plan;
}

}  // namespace memphis
