// SPDX-License-Identifier: Apache-2.0
#include "csrc/optim/optimizer.h"

#include <algorithm>

#include "kernels/adamw/adamw.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/global_norm/global_norm.h"

namespace memphis {

bool keeps_master(DType weights) {
  return accumulation_dtype(weights) != weights;
}

Optimizer::Optimizer(const OptimizerConfig& config,
                     WeightResidency& residency,
                     const Groups& groups,
                     const NormScratch& scratch)
    : config_(config),
      residency_(residency),
      parameters_(residency.parameters()),
      groups_(groups),
      norms_arena_("gradient norms", scratch.bytes(), parameters_.device()),
      master_arena_("master weights", master_bytes(parameters_.plan()), parameters_.device()),
      moments_arena_("moments", moments_bytes(parameters_.plan()), parameters_.device()) {
  runs_PW_ = norms_arena_.allocate(scratch.runs_PW);
  layers_LW_ = norms_arena_.allocate(scratch.layers_LW);
  ranks_PLW_ = norms_arena_.allocate(scratch.ranks_PLW);
  const std::vector<Segment>& segments = parameters_.plan().segments;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    const TensorSpec wide({segment.owned.count}, accumulation_dtype(segment.dtype));
    SegmentState& state = segments_.emplace_back();
    if (!segment.has_state()) {
      continue;
    }
    state.owns_master = keeps_master(segment.dtype);
    state.master_n =
        state.owns_master ? master_arena_.allocate(wide) : parameters_.owned_weights(i);
    state.m_n = moments_arena_.allocate(wide);
    state.v_n = moments_arena_.allocate(wide);
  }
}

void Optimizer::copy_weights_to_master(Stream stream) {
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    if (segments_[i].owns_master) {
      kernels::convert({.y = segments_[i].master_n, .x = parameters_.owned_weights(i)}, stream);
    }
  }
}

void Optimizer::copy_tied_embedding(Stream stream) {
  const std::vector<Segment>& segments = parameters_.plan().segments;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].tied != Tied::no) {
      groups_.tied().run(
          Broadcast{.x = parameters_.segment_weights(i)}, "optimizer.tied_embedding", stream);
    }
  }
}

void Optimizer::measure_gradient(const TensorView& norm_1,
                                 const TensorView& partial_P,
                                 Stream stream) {
  const ParameterPlan& plan = parameters_.plan();
  const auto cell = [](const TensorView& table_PW, std::int64_t row) {
    TensorView view = table_PW.rows(row, 1);
    view.num_dims = 1;
    view.dims[0] = 1;
    return view;
  };
  const auto flat = [](const TensorView& table) { return table.reshape({table.num_elements()}); };
  // The norm of norms is the norm of all. A layer has one on one rank of the pipeline, and zero on
  // the others. Its runs are neighbours.
  device_zero(layers_LW_.data, layers_LW_.bytes(), stream);
  const auto num_runs = static_cast<std::int64_t>(plan.counted.size());
  for (std::int64_t begin = 0; begin < num_runs;) {
    const auto layer_of = [&](std::int64_t run) {
      const std::int64_t element = plan.counted[static_cast<std::size_t>(run)].begin;
      return plan.segments[plan.segment_of(element)].layer;
    };
    const int layer = layer_of(begin);
    std::int64_t end = begin;
    for (; end < num_runs && layer_of(end) == layer; ++end) {
      kernels::global_norm({.norm_1 = cell(runs_PW_, end),
                            .x_n = parameters_.sums(plan.counted[static_cast<std::size_t>(end)]),
                            .partial_P = partial_P},
                           stream);
    }
    kernels::global_norm({.norm_1 = cell(layers_LW_, layer - kBeforeLayers),
                          .x_n = flat(runs_PW_.rows(begin, end - begin)),
                          .partial_P = partial_P},
                         stream);
    begin = end;
  }
  groups_.pipeline().run(AllReduce{.y = layers_LW_, .x = layers_LW_}, "optimizer.norm", stream);
  groups_.stage_ranks().run(AllGather{.y = ranks_PLW_, .x = layers_LW_}, "optimizer.norm", stream);
  kernels::global_norm({.norm_1 = norm_1, .x_n = flat(ranks_PLW_), .partial_P = partial_P}, stream);
}

std::array<double, 3> Optimizer::rates(double learning_rate, std::int64_t step) const {
  return kernels::adamw_rates(learning_rate, config_.beta1, config_.beta2, step);
}

bool Optimizer::waits() const {
  return std::any_of(
      gates_.begin(), gates_.end(), [](const UpdateGate* gate) { return !gate->is_open(); });
}

void Optimizer::step(const TensorView& rates_3, const TensorView& norm_1, Stream stream) {
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    const Segment& segment = parameters_.plan().segments[i];
    for (UpdateGate* const gate : gates_) {
      if (!gate->is_open()) {
        gate->await(i, stream);
      }
    }
    if (segment.has_state()) {
      kernels::adamw({.param_n = parameters_.owned_weights(i),
                      .master_n = segments_[i].master_n,
                      .m_n = segments_[i].m_n,
                      .v_n = segments_[i].v_n,
                      .grad_n = parameters_.segment_sums(i),
                      .norm_1 = norm_1,
                      .rates_3 = rates_3,
                      .beta1 = config_.beta1,
                      .beta2 = config_.beta2,
                      .eps = config_.eps,
                      .weight_decay = segment.decay ? config_.weight_decay : 0.0,
                      .clip_norm = config_.clip_norm},
                     stream);
    }
    if (segment.tied != Tied::no) {
      groups_.tied().run(
          Broadcast{.x = parameters_.owned_weights(i)}, "optimizer.tied_embedding", stream);
    }
    residency_.changed(i);
  }
}

std::vector<Optimizer::StateTensor> Optimizer::state() const {
  std::vector<StateTensor> result;
  for (const LogicalParameter& parameter : parameters_.plan().logical) {
    const auto index = static_cast<std::size_t>(parameter.segment);
    const SegmentState& segment = segments_[index];
    const Range& owned = parameters_.plan().segments[index].owned;
    const Range local = parameter.local(owned);
    if (local.count == 0) {
      continue;
    }
    const auto add = [&](const char* suffix, const TensorView& flat_n) {
      result.push_back(
          {.name = parameter.name + suffix,
           .parameter = &parameter,
           .local = local,
           .view = flat_view(
               flat_n, owned.begin, parameter.begin + local.begin, {{local.count}, flat_n.dtype})});
    };
    if (segment.owns_master) {
      add(".master", segment.master_n);
    }
    add(".m", segment.m_n);
    add(".v", segment.v_n);
  }
  return result;
}

}  // namespace memphis
