// SPDX-License-Identifier: Apache-2.0
#include "csrc/optim/optimizer.h"

#include "csrc/plan/memory.h"
#include "kernels/adamw/adamw.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/global_norm/global_norm.h"

namespace memphis {
namespace {

TensorSpec moments_spec(const Parameters& parameters) {
  return {{parameters.plan().num_elements}, accumulation_dtype(parameters.compute())};
}

}  // namespace

Optimizer::Optimizer(const OptimizerConfig& config, Parameters& parameters)
    : config_(config),
      parameters_(parameters),
      master_arena_("master weights", master_bytes(parameters.plan()), parameters.device()),
      moments_arena_("moments", 2 * arena_bytes(moments_spec(parameters)), parameters.device()),
      m_n_(moments_arena_.allocate(moments_spec(parameters))),
      v_n_(moments_arena_.allocate(moments_spec(parameters))) {
  const std::vector<Segment>& segments = parameters_.plan().segments;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    const TensorView weights_n = parameters_.segment_weights(static_cast<int>(i));
    const TensorSpec wide({segment.num_elements}, accumulation_dtype(segment.dtype));
    SegmentState state;
    state.owns_master = wide.dtype != segment.dtype;
    state.master_n = state.owns_master ? master_arena_.allocate(wide) : weights_n;
    state.m_n = flat_view(m_n_, 0, segment.begin, wide);
    state.v_n = flat_view(v_n_, 0, segment.begin, wide);
    segments_.push_back(state);
  }
}

void Optimizer::copy_weights_to_master(Stream stream) {
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    if (segments_[i].owns_master) {
      kernels::convert(
          {.y = segments_[i].master_n, .x = parameters_.segment_weights(static_cast<int>(i))},
          stream);
    }
  }
}

void Optimizer::measure_gradient(const TensorView& norm_1,
                                 const TensorView& partial_P,
                                 Stream stream) {
  kernels::global_norm({.norm_1 = norm_1, .x_n = parameters_.gradients_n(), .partial_P = partial_P},
                       stream);
}

void Optimizer::step(double learning_rate,
                     std::int64_t step,
                     const TensorView& norm_1,
                     Stream stream) {
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    const auto index = static_cast<int>(i);
    const bool decay = parameters_.plan().segments[i].decay;
    kernels::adamw({.param_n = parameters_.segment_weights(index),
                    .master_n = segments_[i].master_n,
                    .m_n = segments_[i].m_n,
                    .v_n = segments_[i].v_n,
                    .grad_n = parameters_.segment_gradients(index),
                    .norm_1 = norm_1,
                    .learning_rate = learning_rate,
                    .beta1 = config_.beta1,
                    .beta2 = config_.beta2,
                    .eps = config_.eps,
                    .weight_decay = decay ? config_.weight_decay : 0.0,
                    .clip_norm = config_.clip_norm,
                    .step = step},
                   stream);
  }
}

std::vector<Optimizer::StateTensor> Optimizer::state() const {
  std::vector<StateTensor> result;
  for (const LogicalParameter& parameter : parameters_.plan().logical) {
    const SegmentState& segment = segments_[static_cast<std::size_t>(parameter.segment)];
    const std::int64_t origin =
        parameters_.plan().segments[static_cast<std::size_t>(parameter.segment)].begin;
    const auto add = [&](const char* suffix, const TensorView& flat_n) {
      result.push_back({.name = parameter.name + suffix,
                        .view = flat_view(flat_n, origin, parameter.begin, parameter.spec)});
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
