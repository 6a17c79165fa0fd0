// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/training_plan.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace memphis {
namespace {

TensorSpec message_of(const Dims& dims, DType compute) {
  return {{dims.residual_T, dims.D}, compute};
}

// Of rank `rank` along Axis::pipeline.
InferencePlan plan_inference_of(const Dims& dims,
                                DType compute,
                                Device device,
                                const std::vector<StageLayers>& stages,
                                PipelineShape shape,
                                std::int64_t rank) {
  InferencePlan plan;
  plan.dims = dims;
  plan.activations = plan_activations(dims, compute, Keep::one_layer, device, stages);
  shape.num_micro_batches = 1;
  shape.forward_only = true;
  plan.schedule = make_schedule(shape);
  plan.messages = plan_message_buffers({&plan.schedule}, rank, message_of(dims, compute));
  return plan;
}

}  // namespace

InferencePlan plan_inference(const ModelConfig& model,
                             std::int64_t num_sequences,
                             std::int64_t sequence_length,
                             DType compute,
                             Device device) {
  return plan_inference_of(make_dims(model, num_sequences, sequence_length),
                           compute,
                           device,
                           stages_of(model, {}),
                           {},
                           0);
}

TrainingPlan plan_training(const Config& config,
                           DType compute,
                           const DeviceRoom& room,
                           const Mesh& mesh,
                           std::int64_t rank,
                           std::size_t option) {
  TrainingPlan plan;
  plan.share = make_share(config.model, config.parallel, mesh, rank);
  const auto dims_of = [&](std::int64_t num_sequences, const Share& share) {
    return make_dims(config.model, num_sequences, config.batch.sequence_length, share);
  };
  plan.dims = dims_of(config.batch.micro_batch, plan.share);
  plan.num_micro_batches =
      SampleShare(config.batch, plan.share).num_sequences() / config.batch.micro_batch;
  const std::int64_t pipeline_rank = mesh.index(Axis::pipeline, rank);
  PipelineShape shape = pipeline_shape(config.parallel, plan.num_micro_batches);
  plan.schedule = make_schedule(shape);
  shape.forward_only = true;
  shape.num_micro_batches = shape.num_stages() > 1 ? plan.num_micro_batches : 1;
  plan.validation = make_schedule(shape);
  plan.messages = plan_message_buffers(
      {&plan.schedule, &plan.validation}, pipeline_rank, message_of(plan.dims, compute));
  plan.parameters = plan_parameters(config.model, compute, plan.share);
  const std::vector<StageLayers> stages = stages_of(config.model, plan.share);
  if (config.metrics.sample_every > 0) {
    plan.sampling = plan_inference_of(
        dims_of(1, plan.share), compute, room.device, stages, shape, pipeline_rank);
  }
  const Share first_share = make_share(config.model, config.parallel, mesh, 0);
  const std::vector<Recompute> options = recompute_options(
      config.model, config.memory, dims_of(config.batch.micro_batch, first_share), compute);
  plan.activations = plan_activations(plan.dims, compute, Keep::all_layers, room.device, stages);
  for (std::size_t chunk = 0; chunk < stages.size(); ++chunk) {
    const ChunkSlots& slots =
        plan.schedule.slots_of({.rank = pipeline_rank, .chunk = static_cast<std::int64_t>(chunk)});
    plan.activations.chunks[chunk].num_slots = slots.held;
    plan.activations.chunks[chunk].num_pending = slots.pending_weights;
  }
  for (std::size_t i = option; i < options.size(); ++i) {
    plan.recompute_option = i;
    plan.activations.recompute = options[i];
    plan.memory = plan_training_memory(
        plan.parameters, plan.activations, compute, plan.share, room.library_bytes);
    plan.memory.workspace_bytes += plan.messages.bytes();
    plan.memory.sampling_bytes = plan.sampling ? plan.sampling->bytes() : 0;
    if (plan.memory.total_bytes() <= room.budget_bytes) {
      break;
    }
  }
  return plan;
}

StagePlans plan_all_stages(const Config& config,
                           DType compute,
                           const DeviceRoom& room,
                           const Mesh& mesh) {
  for (std::size_t option = 0;;) {
    StagePlans plans;
    std::size_t most = option;
    bool agreed = true;
    for (std::int64_t place = 0; place < mesh.degree(Axis::pipeline); ++place) {
      const std::int64_t rank = mesh.at(Axis::pipeline, place, 0);
      TrainingPlan plan = plan_training(config, compute, room, mesh, rank, option);
      agreed = agreed && (place == 0 || plan.recompute_option == most);
      most = std::max(most, plan.recompute_option);
      plans.bytes.push_back(plan.memory.total_bytes());
      if (place == 0 || plans.bytes.back() > plans.largest.memory.total_bytes()) {
        plans.largest_rank = place;
        plans.largest = std::move(plan);
      }
    }
    if (agreed) {
      return plans;
    }
    option = most;
  }
}

}  // namespace memphis
