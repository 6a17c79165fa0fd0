// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/training_plan.h"

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
                           Device device,
                           DType compute,
                           const Mesh& mesh,
                           std::int64_t rank,
                           std::size_t library_bytes) {
  TrainingPlan plan;
  plan.share = make_share(config.parallel, mesh, rank);
  plan.dims =
      make_dims(config.model, config.batch.micro_batch, config.batch.sequence_length, plan.share);
  plan.parameters = plan_parameters(config.model, compute, plan.share);
  plan.activations = plan_activations(plan.dims, compute, Keep::all_layers, device);
  plan.memory =
      plan_training_memory(plan.parameters, plan.activations, compute, plan.share, library_bytes);
  if (config.metrics.sample_every > 0) {
    plan.sampling =
        plan_inference(config.model, 1, config.batch.sequence_length, compute, device, plan.share);
    plan.memory.sampling_bytes = plan.sampling->bytes();
  }
  return plan;
}

}  // namespace memphis
