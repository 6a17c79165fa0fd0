// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/step.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <utility>

#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/optim/lr_schedule.h"
#include "csrc/plan/host_memory.h"
#include "kernels/op_profile.h"

namespace memphis {
namespace {

// What a rank says as a step begins.
enum Word : std::size_t { kTargets, kValidTokens, kStop, kSave, kNumWords };

}  // namespace

TrainStep::Place::Place(const Config& config,
                        const TrainingPlan& plan,
                        const SampleShare& samples,
                        const Grok& model,
                        bool graphs,
                        Stream stream)
    : batch(samples.num_sequences(),
            config.batch.sequence_length,
            config.model.pad_id,
            stream.device,
            sequence_share(config, plan.share)),
      scalars(model.activations().shared.step_scalars),
      stats(model.activations().shared.stats),
      offsets(static_cast<std::size_t>(model.dims().L) * expert_offsets_bytes(model.dims()),
              stream.device),
      begin(stream.device),
      filled(stream.device),
      differentiated(stream.device),
      end(stream.device),
      copied(stream.device, Event::Use::ordering) {
  if (graphs) {
    differentiation.emplace(stream, config.run.graph, "the gradients");
    update.emplace(stream, config.run.graph, "the update");
  }
  // The layers of other ranks have none here; those of this one are read back each step.
  std::fill_n(static_cast<std::int32_t*>(offsets.data()),
              model.dims().L * num_expert_offsets(model.dims()),
              0);
}

TrainStep::TrainStep(const Config& config,
                     const TrainingPlan& plan,
                     const Mesh& mesh,
                     const Groups& groups,
                     Grok& model,
                     Pipeline& pipeline,
                     Parameters& parameters,
                     Optimizer& optimizer,
                     const MixtureLoader& loader,
                     bool graphs,
                     Stream stream)
    : config_(config),
      samples_(config.batch, plan.share),
      plan_(plan),
      groups_(groups),
      model_(model),
      pipeline_(pipeline),
      parameters_(parameters),
      reduction_(parameters, groups, stream),
      optimizer_(optimizer),
      loader_(loader),
      stream_(stream),
      roll_call_(groups.all_host(), kNumWords),
      sample_ranks_(mesh.group(Axis::data_context, groups.all_host().rank()).ranks()),
      places_{Place(config, plan, samples_, model, graphs, stream),
              Place(config, plan, samples_, model, graphs, stream)},
      rows_LE_(static_cast<std::size_t>(model.dims().L * model.dims().E)),
      padding_(static_cast<std::size_t>(plan.num_micro_batches)) {}

TrainStep::News TrainStep::prepare(std::int64_t step, std::uint64_t first_sample, const News& own) {
  require(num_under_way_ < kStepsUnderWay, "the step before the last one is finished");
  const std::int64_t global_batch = config_.batch.global_batch;
  prepared_ = num_under_way_ == 0 ? newest_ : (newest_ + 1) % kStepsUnderWay;
  Place& place = places_[prepared_];
  place.step = step;
  place.follows = num_under_way_ > 0;
  place.is_read = false;
  place.result = {};
  place.result.tokens = global_batch * config_.batch.sequence_length;

  Activity& activity = groups_.activity();
  activity.take_communication();  // of what went before the step
  activity.begin_step(step);
  activity.enter("data");
  place.begin.record(stream_);
  // Text can be lost on one rank alone, and then no rank is to wait for its counts. By reference: a
  // function that is copied would be allocated.
  roll_call_.own()[kStop] = own.stop;
  roll_call_.own()[kSave] = own.save;
  const auto fill = [&] {
    const StepBatch::Counts counts = place.batch.fill(loader_, first_sample, samples_);
    roll_call_.own()[kTargets] = counts.targets;
    roll_call_.own()[kValidTokens] = counts.valid_tokens;
  };
  roll_call_.take("step.samples", std::cref(fill));
  const StepBatch::Counts counts = summed_counts();
  if (plan_.share.context.count > 1) {
    place.result.context_imbalance = place.batch.context_imbalance();
  }
  place.scalars.set(
      {.target = 1.0F / static_cast<float>(std::max<std::int64_t>(counts.targets, 1)),
       .sequence = 1.0F / static_cast<float>(global_batch),
       .token = 1.0F / static_cast<float>(std::max<std::int64_t>(counts.valid_tokens, 1)),
       .balance = static_cast<float>(config_.loss.balance),
       .router_z = static_cast<float>(config_.loss.router_z),
       // Ranks that share a sequence out have its balance loss alike, and one of them adds it.
       .own_sequences = plan_.share.context.index == 0 ? 1.0F : 0.0F},
      model_.dims().L);
  place.filled.record(stream_);
  return {.stop = roll_call_.largest(kStop), .save = roll_call_.largest(kSave)};
}

void TrainStep::launch() {
  Place& place = places_[prepared_];
  const std::size_t before = newest_;
  const bool is_before = num_under_way_ > 0;
  const std::int64_t nodes = differentiate(place);
  // How many steps the optimizer has made is known once no step before is unread.
  if (is_before) {
    read(places_[before]);
  }
  const auto [rate, m_correction, v_correction] =
      optimizer_.rates(learning_rate(config_.schedule, config_.optimizer.learning_rate, place.step),
                       place.step - skipped_.steps);
  place.scalars.set(StepScalar::rates, {rate, m_correction, v_correction});
  const std::int64_t more_nodes = update(place);
  place.result.graph_nodes = nodes > 0 && more_nodes > 0 ? nodes + more_nodes : 0;
  place.copied.record(stream_);
  newest_ = prepared_;
  ++num_under_way_;
  if (stream_.device == Device::cpu) {
    place.result.communication = groups_.activity().take_communication();
  }
}

StepResult TrainStep::finish() {
  require(num_under_way_ > 0, "a step is launched before it is finished");
  Place& place = places_[num_under_way_ == 1 ? newest_ : (newest_ + 1) % kStepsUnderWay];
  --num_under_way_;
  read(place);
  StepResult& result = place.result;
  result.expert_load_max = busiest_expert(place);
  result.data_seconds = place.filled.seconds_since(place.begin);
  result.model_seconds = place.differentiated.seconds_since(place.filled);
  result.optimizer_seconds = place.end.seconds_since(place.differentiated);
  if (stream_.device != Device::cpu) {
    result.communication = groups_.activity().take_communication();
  }
  return result;
}

void TrainStep::read(Place& place) {
  if (place.is_read) {
    return;
  }
  groups_.activity().enter("statistics");
  place.copied.wait();
  place.is_read = true;
  StepResult& result = place.result;
  result.loss = place.stats[Stat::loss];
  result.balance = place.stats[Stat::balance];
  result.router_z = place.stats[Stat::z];
  result.grad_norm = place.stats[Stat::grad_norm];
  // Here and not in finish(): the next step's end takes the place of the one before.
  const Place& other = &place == &places_[0] ? places_[1] : places_[0];
  result.seconds = place.end.seconds_since(place.follows ? other.end : place.begin);
  result.skipped = !std::isfinite(result.grad_norm);
  skipped_ = result.skipped
                 ? Skipped{.steps = skipped_.steps + 1, .in_a_row = skipped_.in_a_row + 1}
                 : Skipped{.steps = skipped_.steps, .in_a_row = 0};
  if (skipped_.in_a_row > config_.optimizer.max_skipped ||
      (!std::isfinite(result.loss) && !result.skipped)) {
    throw DivergedError("step " + std::to_string(place.step) + " has loss " +
                        std::to_string(result.loss) + " and gradient norm " +
                        std::to_string(result.grad_norm) + " (training diverged" +
                        (skipped_.in_a_row > 1 ? ": " + std::to_string(skipped_.in_a_row) +
                                                     " steps in a row, of which "
                                                     "optimizer.max_skipped allows " +
                                                     std::to_string(config_.optimizer.max_skipped)
                                               : "") +
                        "); go back to weights from before that");
  }
}

bool TrainStep::launches_graphs() const {
  return kernels::OpProfile::active() == nullptr && groups_.activity().gpu_spans() == nullptr &&
         !optimizer_.waits();
}

std::int64_t TrainStep::differentiate(Place& place) {
  if (!place.differentiation || !launches_graphs()) {
    enqueue_differentiation(place);
    return 0;
  }
  const std::int64_t size = config_.batch.micro_batch;
  for (std::int64_t i = 0; i < plan_.num_micro_batches; ++i) {
    padding_[static_cast<std::size_t>(i)] = place.batch.micro_batch(i * size, size).any_padding;
  }
  groups_.activity().enter("graph of the gradients");
  const auto work = [&] { enqueue_differentiation(place); };
  return place.differentiation->run(padding_, std::cref(work));
}

std::int64_t TrainStep::update(Place& place) {
  if (!place.update || !launches_graphs()) {
    enqueue_update(place);
    return 0;
  }
  groups_.activity().enter("graph of the update");
  const auto work = [&] { enqueue_update(place); };
  return place.update->run({}, std::cref(work));
}

void TrainStep::enqueue_differentiation(Place& place) {
  const SharedActivations<TensorView>& shared = model_.activations().shared;
  Activity& activity = groups_.activity();
  place.scalars.copy_scales(stream_);
  if (!std::exchange(has_rehearsed_, true) && pipeline_.receives_on_gpu()) {
    rehearse();
  }
  reduction_.begin_step();
  device_zero(shared.stats.data, shared.stats.bytes(), stream_);
  const auto act = [&](const Action& action, MicroBatch& slot) { run(action, slot); };
  const auto together = [&](const Action& forward,
                            MicroBatch& forward_slot,
                            const Action& backward,
                            MicroBatch& backward_slot) {
    run_together(forward, forward_slot, backward, backward_slot);
  };
  pipeline_.run(plan_.schedule, std::cref(act), std::cref(together));
  activity.enter("reduction of gradients");
  sum_losses_over_ranks();
  reduction_.finish();
  place.differentiated.record(stream_);
}

// Twice, as a product that adds to a gradient may take another kernel than one that writes it. What it
// leaves in gradients, the first micro-batch of the step writes over, and the statistics are cleared.
void TrainStep::rehearse() {
  for (const bool first : {true, false}) {
    pipeline_.run_first(plan_.schedule, [&](const Action& action, MicroBatch& slot) {
      run(action, slot, reduction_.weight_gradient(first), nullptr);
    });
  }
}

void TrainStep::enqueue_update(Place& place) {
  const SharedActivations<TensorView>& shared = model_.activations().shared;
  groups_.activity().enter("optimizer");
  place.scalars.copy_rates(stream_);
  const TensorView norm_1 = stat_view(shared, Stat::grad_norm);
  optimizer_.measure_gradient(norm_1, model_.activations().backward.global_norm_partial_P, stream_);
  optimizer_.step(step_scalar_view(shared, StepScalar::rates), norm_1, stream_);
  place.end.record(stream_);
  enqueue_read_back(place);
}

const PendingWeights& TrainStep::pending_of(const Action& action) const {
  return model_.activations()
      .pending[plan_.activations.pending_of(action.chunk, action.micro_batch)];
}

void TrainStep::run(const Action& action, MicroBatch& slot) {
  const std::int64_t index = action.micro_batch;
  run(action,
      slot,
      reduction_.weight_gradient(index == 0),
      reduction_.of_micro_batch(index + 1 == plan_.num_micro_batches));
}

void TrainStep::run_together(const Action& forward,
                             MicroBatch& forward_slot,
                             const Action& backward,
                             MicroBatch& backward_slot) {
  const std::int64_t index = backward.micro_batch;
  const bool in_stages = plan_.schedule.shape.num_stages() > 1;
  const auto turn = [&](Grok::Turn which) {
    const Action& action = which == Grok::Turn::forward ? forward : backward;
    groups_.activity().begin_micro_batch(action.micro_batch, in_stages ? action.stage : -1);
  };
  load(forward, forward_slot);
  model_.forward_beside_backward(
      forward_slot,
      backward_slot,
      backward.kind == ActionKind::backward_inputs ? &pending_of(backward) : nullptr,
      reduction_.weight_gradient(index == 0),
      reduction_.of_micro_batch(index + 1 == plan_.num_micro_batches),
      std::cref(turn));
}

void TrainStep::load(const Action& action, MicroBatch& slot) {
  const std::int64_t size = config_.batch.micro_batch;
  model_.load(slot, places_[prepared_].batch.micro_batch(action.micro_batch * size, size));
}

void TrainStep::differentiate_again() {
  groups_.activity().enter("computing a micro-batch again");
  // The others' messages are sent as they lie: each rank keeps to the schedule.
  const auto act = [&](const Action& action, MicroBatch& slot) {
    if (action.micro_batch == 0) {
      run(action, slot, kernels::WeightGradient::write, nullptr);
    }
  };
  pipeline_.run(plan_.schedule, std::cref(act));
  synchronize(stream_);
}

void TrainStep::run(const Action& action,
                    MicroBatch& slot,
                    kernels::WeightGradient weight_gradient,
                    GradientSink* sink) {
  switch (action.kind) {
    case ActionKind::forward:
      load(action, slot);
      model_.forward(slot);
      return;
    case ActionKind::backward:
      model_.backward(slot, weight_gradient, sink);
      return;
    case ActionKind::backward_inputs:
      model_.backward_inputs(slot, pending_of(action), weight_gradient, sink);
      return;
    case ActionKind::backward_weights:
      model_.backward_weights(slot, pending_of(action), weight_gradient, sink);
      return;
  }
}

StepBatch::Counts TrainStep::summed_counts() const {
  // Ranks along `data` have samples of their own, along `context` tokens of them; those along `tensor`
  // have the same.
  StepBatch::Counts sums;
  for (const int rank : sample_ranks_) {
    sums.targets += roll_call_.said(rank, kTargets);
    sums.valid_tokens += roll_call_.said(rank, kValidTokens);
  }
  return sums;
}

void TrainStep::sum_losses_over_ranks() {
  // A tensor rank has the z loss of its tokens, and the other losses of all that these ranks have.
  const SharedActivations<TensorView>& shared = model_.activations().shared;
  const Range rows = stat_rows(Stat::z, shared.stats);
  const TensorView z_LW = shared.stats.rows(rows.begin, rows.count);
  groups_.tensor().run(AllReduce{.y = z_LW, .x = z_LW}, "step.z_loss", stream_);
  // A stage has the losses of its layers, the last one the cross entropy.
  for (Communicator* const ranks : {&groups_.data_context(), &groups_.pipeline()}) {
    ranks->run(AllReduce{.y = shared.stats, .x = shared.stats}, "step.losses", stream_);
  }
}

double TrainStep::busiest_expert(const Place& place) {
  const Dims& dims = model_.dims();
  const auto* offsets = static_cast<const std::int32_t*>(place.offsets.data());
  std::fill(rows_LE_.begin(), rows_LE_.end(), 0);
  for (std::int64_t layer = 0; layer < dims.L; ++layer) {
    const std::int32_t* of_layer = offsets + layer * num_expert_offsets(dims);
    for (std::int64_t i = 0; i + 1 < num_expert_offsets(dims); ++i) {
      rows_LE_[static_cast<std::size_t>(layer * dims.E + dims.expert_of(i))] +=
          of_layer[i + 1] - of_layer[i];
    }
  }
  sum_over_ranks(groups_.all_host(), rows_LE_, "step.expert_load");
  const std::int64_t busiest = *std::max_element(rows_LE_.begin(), rows_LE_.end());
  const std::int64_t all_rows =
      std::accumulate(rows_LE_.begin(), rows_LE_.begin() + dims.E, std::int64_t{0});
  return static_cast<double>(busiest * dims.E) /
         static_cast<double>(std::max<std::int64_t>(all_rows, 1));
}

void TrainStep::enqueue_read_back(Place& place) {
  const Dims& dims = model_.dims();
  place.stats.copy(stream_);
  auto* offsets = static_cast<std::int32_t*>(place.offsets.data());
  for (std::size_t chunk = 0; chunk < plan_.activations.chunks.size(); ++chunk) {
    const MicroBatch& last =
        pipeline_.slot_of(static_cast<std::int64_t>(chunk), plan_.num_micro_batches - 1);
    for (std::size_t i = 0; i < last.layers.size(); ++i) {
      const TensorView& view = last.layers[i].offsets_E1;
      device_copy(
          offsets + last.layer_at(i) * num_expert_offsets(dims), view.data, view.bytes(), stream_);
    }
  }
}

}  // namespace memphis
