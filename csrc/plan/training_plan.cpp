// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/training_plan.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/config/validate.h"
#include "csrc/core/trace.h"
#include "csrc/plan/context_exchange.h"
#include "csrc/plan/tensor_chunks.h"

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

// Of all ranks, in a step and in a pass of validation.
struct Schedules {
  PipelineSchedule step;
  PipelineSchedule validation;
};

Schedules make_schedules(const Config& config, const Mesh& mesh, bool paired) {
  const std::int64_t num_micro_batches =
      config.batch.global_batch / mesh.degree(Axis::data) / config.batch.micro_batch;
  PipelineShape shape = pipeline_shape(config.parallel, num_micro_batches);
  shape.paired = paired;
  Schedules schedules{.step = make_schedule(shape), .validation = {}};
  shape.paired = false;
  shape.forward_only = true;
  shape.num_micro_batches = shape.num_stages() > 1 ? num_micro_batches : 1;
  schedules.validation = make_schedule(shape);
  return schedules;
}

// With and without pairs of passes, as far as the config leaves it open, pairs first.
std::vector<Schedules> schedules_of(const Config& config, const Mesh& mesh) {
  std::vector<Schedules> result;
  const OverlapChoice choice = config.parallel.overlap_experts;
  if (choice == OverlapChoice::required ||
      (choice == OverlapChoice::automatic && expert_overlap_refusal(config).empty())) {
    result.push_back(make_schedules(config, mesh, true));
  }
  if (choice != OverlapChoice::required) {
    result.push_back(make_schedules(config, mesh, false));
  }
  return result;
}

void take(Schedules&& schedules, TrainingPlan& plan) {
  plan.schedule = std::move(schedules.step);
  plan.validation = std::move(schedules.validation);
}

Dims dims_of(const Config& config, std::int64_t num_sequences, const Share& share, Device device) {
  Dims dims = make_dims(config.model, num_sequences, config.batch.sequence_length, share);
  if (dims.exchange_keys) {
    dims.key_exchange = choose_key_exchange(config, dims, device);
  }
  dims.tensor_chunks = choose_tensor_chunks(config, dims, device);
  return dims;
}

// The gradient of the head's weight, in f32, is read and written for each run of tokens: on an H100
// its product waits for memory below 1200 rows, and at 4096 for less than a third of its time.
constexpr std::int64_t kHeadRowsOfGpu = 4096;

Dims training_dims(const Config& config, const Share& share, Device device) {
  Dims dims = dims_of(config, config.batch.micro_batch, share, device);
  require_tensor_chunks(config, dims);
  if (config.memory.head_rows > 0) {
    dims.head_chunk = std::min(config.memory.head_rows, dims.T);
  } else if (device == Device::cuda) {
    dims.head_chunk = std::min(std::max(dims.head_chunk, kHeadRowsOfGpu), dims.T);
  }
  return dims;
}

std::vector<Recompute> options_of(const Config& config, DType compute, const Mesh& mesh) {
  const Share first = make_share(config.model, config.parallel, mesh, 0);
  return recompute_options(
      config.model,
      config.memory,
      make_dims(config.model, config.batch.micro_batch, config.batch.sequence_length, first),
      compute);
}

// The counts of rows that all layers of all slots of a model have.
std::size_t exchange_bytes(const Dims& dims, const ActivationPlan& activations) {
  std::int64_t num_layers = 0;
  for (const ChunkActivations& chunk : activations.chunks) {
    num_layers += chunk.num_slots * chunk.stage.layers.count;
  }
  return static_cast<std::size_t>(num_layers) * sent_offsets_bytes(dims);
}

HostMemoryPlan plan_host_memory(const Config& config,
                                const TrainingPlan& plan,
                                const PipelineSchedule& validation,
                                Device device) {
  const std::int64_t S = config.batch.sequence_length;
  const std::int64_t context = plan.share.context.count;
  const std::int64_t micro_batch = config.batch.micro_batch;
  const bool validates = !config.data.validation.empty() || config.data.held_out > 0;
  const std::int64_t validated = validates ? validation.shape.num_micro_batches : 0;
  const std::int64_t asked =
      config.data.evaluate.empty() ? 0 : validation.shape.num_micro_batches * micro_batch;
  const std::size_t stats_bytes =
      plan.activations.shared.stats.bytes() + plan.activations.shared.step_scalars.bytes();
  return {.batches_bytes =
              kStepsUnderWay * batch_bytes(plan.num_micro_batches * micro_batch, S, context) +
              batch_bytes(validated * micro_batch, S, context) + batch_bytes(asked, S, context) +
              (plan.sampling && context > 1 ? batch_bytes(1, S, context) : 0) +
              token_losses_bytes(asked * plan.dims.S),
          .statistics_bytes = (validates ? kStepsUnderWay + 1 : kStepsUnderWay) * stats_bytes +
                              kStepsUnderWay * static_cast<std::size_t>(plan.dims.L) *
                                  expert_offsets_bytes(plan.dims),
          .exchange_bytes =
              exchange_bytes(plan.dims, plan.activations) +
              (plan.sampling ? exchange_bytes(plan.sampling->dims, plan.sampling->activations) : 0),
          .comparison_bytes = comparison_bytes(
              device, config.run.verify_every > 0 || config.run.recompute_check_every > 0),
          .staging_bytes = staging_bytes(device),
          .trace_bytes = config.metrics.trace ? Trace::kMaxSpans * sizeof(Trace::Span) : 0};
}

// But for the schedules, which are those of all ranks.
TrainingPlan plan_but_recompute(const Config& config,
                                DType compute,
                                const DeviceRoom& room,
                                const Mesh& mesh,
                                std::int64_t rank,
                                const Schedules& schedules) {
  TrainingPlan plan;
  plan.share = make_share(config.model, config.parallel, mesh, rank);
  plan.dims = training_dims(config, plan.share, room.device);
  plan.num_micro_batches = schedules.step.shape.num_micro_batches;
  const std::int64_t pipeline_rank = mesh.index(Axis::pipeline, rank);
  plan.messages = plan_message_buffers(
      {&schedules.step, &schedules.validation}, pipeline_rank, message_of(plan.dims, compute));
  plan.parameters = plan_parameters(config.model, compute, plan.share);
  const std::vector<StageLayers> stages = stages_of(config.model, plan.share);
  if (config.metrics.sample_every > 0) {
    plan.sampling = plan_inference_of(dims_of(config, 1, plan.share, room.device),
                                      compute,
                                      room.device,
                                      stages,
                                      schedules.validation.shape,
                                      pipeline_rank);
  }
  plan.activations = plan_activations(plan.dims, compute, Keep::all_layers, room.device, stages);
  for (std::size_t chunk = 0; chunk < stages.size(); ++chunk) {
    const ChunkSlots& slots =
        schedules.step.slots_of({.rank = pipeline_rank, .chunk = static_cast<std::int64_t>(chunk)});
    plan.activations.chunks[chunk].num_slots = slots.held;
    plan.activations.chunks[chunk].num_pending = slots.pending_weights;
  }
  plan.overlaps_experts = schedules.step.shape.paired;
  if (plan.overlaps_experts) {
    allow_pairs(plan.activations);
  }
  plan.norms = plan_norm_scratch(plan.parameters, compute, plan.share);
  plan.communication =
      plan_communication(config.model,
                         mesh,
                         rank,
                         room.device,
                         {.dims = plan.dims,
                          .activations = plan.activations,
                          .parameters = plan.parameters,
                          .layer_norms_LW = plan.norms.layers_LW,
                          .sampling = plan.sampling ? &plan.sampling->activations : nullptr,
                          .compute = compute});
  plan.memory = {.weights_bytes = weights_bytes(plan.parameters),
                 .gradients_bytes = gradients_bytes(plan.parameters, compute),
                 .master_bytes = master_bytes(plan.parameters),
                 .moments_bytes = moments_bytes(plan.parameters),
                 .library_bytes = room.library_bytes,
                 .communication_bytes = plan.communication.bytes(),
                 .sampling_bytes = plan.sampling ? plan.sampling->bytes() : 0,
                 .host = plan_host_memory(config, plan, schedules.validation, room.device)};
  return plan;
}

bool fits(const MemoryPlan& memory, const DeviceRoom& room) {
  return memory.needed_bytes(room.device) <= room.budget_bytes &&
         (room.device == Device::cpu || memory.host.snapshot_bytes == 0 ||
          memory.host.total_bytes() <= room.host_budget_bytes);
}

// Whether a snapshot is planned, whether it is left out where it has no room.
struct SnapshotChoice {
  bool planned = false;
  bool optional = false;
};
SnapshotChoice snapshot_choice(const CheckpointConfig& config, bool background) {
  const bool optional = config.background == BackgroundChoice::automatic;
  return {.planned = config.background == BackgroundChoice::required ||
                     (optional && background && config.every > 0),
          .optional = optional};
}

// The plans of one rank, with each of the schedules there are: made when they are asked for, because
// the first that fits leaves the others unused.
class PlansOfRank {
 public:
  PlansOfRank(const Config& config,
              DType compute,
              const DeviceRoom& room,
              const Mesh& mesh,
              std::int64_t rank,
              const std::vector<Schedules>& schedules)
      : config_(config),
        compute_(compute),
        room_(room),
        mesh_(mesh),
        rank_(rank),
        schedules_(schedules),
        plans_(schedules.size()) {}

  // But for what is computed again.
  TrainingPlan& of(std::size_t schedule) {
    std::optional<TrainingPlan>& plan = plans_[schedule];
    if (!plan) {
      plan = plan_but_recompute(config_, compute_, room_, mesh_, rank_, schedules_[schedule]);
    }
    return *plan;
  }

  // Of `options`, each with each schedule, the first that fits from number `from` on, or the last:
  // that plan is completed, and the number of its schedule returned.
  std::size_t choose(const std::vector<Recompute>& options,
                     std::size_t from,
                     const SnapshotChoice& snapshot) {
    std::size_t chosen = 0;
    for (std::size_t i = from; i < options.size() * plans_.size(); ++i) {
      chosen = i % plans_.size();
      TrainingPlan& plan = of(chosen);
      const auto take_snapshot = [&](bool taken) {
        plan.saves_in_background = taken;
        plan.memory.host.snapshot_bytes = taken ? bytes_of_snapshot(plan) : 0;
        return fits(plan.memory, room_);
      };
      plan.recompute_option = i;
      plan.activations.recompute = options[i / plans_.size()];
      plan.memory.activations_bytes = plan.activations.activation_bytes();
      plan.memory.keys_bytes = plan.activations.keys_bytes();
      plan.memory.workspace_bytes = plan.activations.workspace_bytes() - plan.memory.keys_bytes +
                                    plan.norms.bytes() + plan.messages.bytes();
      if (take_snapshot(snapshot.planned) || (snapshot.optional && take_snapshot(false))) {
        break;
      }
    }
    return chosen;
  }

 private:
  // A sum over all parameters, which no schedule changes.
  std::size_t bytes_of_snapshot(const TrainingPlan& plan) {
    if (!snapshot_bytes_) {
      snapshot_bytes_ = snapshot_bytes(plan.parameters);
    }
    return *snapshot_bytes_;
  }

  const Config& config_;
  DType compute_;
  const DeviceRoom& room_;
  const Mesh& mesh_;
  std::int64_t rank_;
  const std::vector<Schedules>& schedules_;
  std::optional<std::size_t> snapshot_bytes_;
  std::vector<std::optional<TrainingPlan>> plans_;
};

}  // namespace

InferencePlan plan_inference(const ModelConfig& model,
                             std::int64_t num_sequences,
                             std::int64_t sequence_length,
                             DType compute,
                             Device device,
                             std::int64_t capacity) {
  InferencePlan plan = plan_inference_of(make_dims(model, num_sequences, sequence_length),
                                         compute,
                                         device,
                                         stages_of(model, {}),
                                         {},
                                         0);
  if (capacity > 0) {
    plan.activations.shared.rope_table_SH.dims[0] = capacity;
  }
  return plan;
}

TrainingPlan plan_training(const Config& config,
                           DType compute,
                           const DeviceRoom& room,
                           const Mesh& mesh,
                           std::int64_t rank,
                           std::size_t option,
                           bool background) {
  std::vector<Schedules> schedules = schedules_of(config, mesh);
  PlansOfRank plans(config, compute, room, mesh, rank, schedules);
  const std::size_t chosen = plans.choose(
      options_of(config, compute, mesh), option, snapshot_choice(config.checkpoint, background));
  take(std::move(schedules[chosen]), plans.of(chosen));
  return std::move(plans.of(chosen));
}

std::string describe_saves(const TrainingPlan& plan, const CheckpointConfig& config) {
  if (plan.saves_in_background) {
    return "checkpoints are written while training goes on";
  }
  std::string reason = "checkpoint.background is never";
  if (config.background == BackgroundChoice::automatic) {
    reason = config.every == 0 ? "there is one, at the end"
                               : fmt::format("there is no room for a snapshot of {}",
                                             human_bytes(snapshot_bytes(plan.parameters)));
  }
  return fmt::format("training stands while a checkpoint is written ({})", reason);
}

std::string describe_expert_overlap(const TrainingPlan& plan, const Config& config) {
  if (plan.overlaps_experts) {
    const SharedActivations<TensorSpec>& shared = plan.activations.shared;
    std::int64_t held = 0;
    for (const ChunkActivations& chunk : plan.activations.chunks) {
      held += chunk.num_slots;
    }
    return fmt::format(
        "rows travel to experts beside the work of another micro-batch: {} under way at a time, "
        "and {} for the rows of a second pass",
        held,
        human_bytes(arena_bytes(shared.forward_sent_RD) +
                    arena_bytes(shared.forward_sent_gates_R1) +
                    arena_bytes(shared.forward_received_RD)));
  }
  std::string reason = "parallel.overlap_experts is never";
  if (config.parallel.overlap_experts == OverlapChoice::automatic) {
    reason = expert_overlap_refusal(config);
    if (reason.empty()) {
      reason = "there is no room for more micro-batches under way";
    }
  }
  return fmt::format("nothing is computed while rows travel to experts: {}", reason);
}

std::string describe_tensor_overlap(const TrainingPlan& plan) {
  const Dims& d = plan.dims;
  if (!d.tensor_chunks.overlap()) {
    return "nothing is computed while tensor ranks gather and sum: parallel.overlap_tensor is "
           "never, or auto on a CPU, where what moves data takes a core from what computes";
  }
  const std::int64_t count = d.num_chunks(d.tensor_chunks);
  return fmt::format(
      "what tensor ranks gather and sum travels beside their products: {}",
      count > 1
          ? fmt::format("in {} chunks of {} tokens where a product is alone",
                        count,
                        d.chunk_of(d.tensor_chunks, 0).whole.count)
          : fmt::format("in the backward pass alone ({} tokens are too few for two chunks)", d.T));
}

StagePlans plan_all_stages(const Config& config,
                           DType compute,
                           const DeviceRoom& room,
                           const Mesh& mesh) {
  std::vector<Schedules> schedules = schedules_of(config, mesh);
  const std::vector<Recompute> options = options_of(config, compute, mesh);
  std::vector<PlansOfRank> stages;
  for (std::int64_t place = 0; place < mesh.degree(Axis::pipeline); ++place) {
    stages.emplace_back(config, compute, room, mesh, mesh.at(Axis::pipeline, place, 0), schedules);
  }
  // Each begins where another has come to, until none goes on from there.
  std::size_t most = 0;
  std::size_t chosen = 0;
  bool background = true;
  for (bool agreed = false; !agreed;) {
    agreed = true;
    for (PlansOfRank& stage : stages) {
      chosen = stage.choose(options, most, snapshot_choice(config.checkpoint, background));
      const TrainingPlan& plan = stage.of(chosen);
      agreed = agreed && plan.recompute_option == most && plan.saves_in_background == background;
      most = std::max(most, plan.recompute_option);
      background = background && plan.saves_in_background;
    }
  }
  StagePlans plans;
  for (PlansOfRank& stage : stages) {
    plans.bytes.push_back(stage.of(chosen).memory.needed_bytes(room.device));
  }
  const auto largest = std::max_element(plans.bytes.begin(), plans.bytes.end());
  plans.largest_rank = largest - plans.bytes.begin();
  plans.largest = std::move(stages[static_cast<std::size_t>(plans.largest_rank)].of(chosen));
  take(std::move(schedules[chosen]), plans.largest);
  return plans;
}

Config computing_most_again(Config config) {
  if (config.memory.recompute_auto) {
    config.memory.recompute_auto = false;
    config.memory.recompute = {.block = true};
  }
  return config;
}

}  // namespace memphis
