// SPDX-License-Identifier: Apache-2.0
#include "csrc/optim/gradient_reduction.h"

#include <algorithm>

#include "kernels/elementwise/elementwise.h"

namespace memphis {

GradientReduction::GradientReduction(Parameters& parameters, const Groups& groups, Stream stream)
    : parameters_(parameters),
      groups_(groups),
      each_(parameters.plan().num_sum_elements > 0),
      num_layers_(parameters.plan().num_layers),
      stream_(stream),
      has_sum_(parameters.plan().segments.size()) {
  const std::vector<Segment>& segments = parameters.plan().segments;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const Segment& s = segments[i];
    const auto found = std::find_if(together_.begin(), together_.end(), [&](const Together& each) {
      return each.layer == s.layer && each.replicas == s.replicas &&
             each.replicated == s.replicated();
    });
    Together& together = found != together_.end()
                             ? *found
                             : together_.emplace_back(Together{.layer = s.layer,
                                                               .replicas = s.replicas,
                                                               .replicated = s.replicated(),
                                                               .segments = {}});
    together.segments.push_back(i);
  }
  sums_.reserve(segments.size());
  pending_.reserve(together_.size());
}

void GradientReduction::begin_step() {
  std::fill(has_sum_.begin(), has_sum_.end(), false);
}

void GradientReduction::before_backward(int layer) {
  if (!each_) {
    return;
  }
  const std::vector<Segment>& segments = parameters_.plan().segments;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const bool is_next =
        segments[i].layer == layer || (layer == num_layers_ && segments[i].layer == kBeforeLayers);
    if (!is_next) {
      continue;
    }
    std::erase_if(pending_, [&](const Pending& pending) {
      const std::vector<std::size_t>& others = pending.together->segments;
      const bool in_the_way = std::any_of(
          others.begin(), others.end(), [&](std::size_t other) { return overlap(other, i); });
      if (in_the_way) {
        complete(pending);
      }
      return in_the_way;
    });
  }
}

void GradientReduction::after_backward(int layer) {
  sum_shared_heads(layer);
  for (const Together& together : together_) {
    if (together.layer == layer) {
      start(together);
    }
  }
}

// Tensor ranks that share a key/value head have a term each of its gradient.
void GradientReduction::sum_shared_heads(int layer) {
  const std::vector<LayerRun>& shared_kv = parameters_.plan().shared_kv;
  const auto found = std::find_if(shared_kv.begin(), shared_kv.end(), [&](const LayerRun& shared) {
    return shared.layer == layer;
  });
  if (found == shared_kv.end()) {
    return;
  }
  const Range& run = found->elements;
  const std::size_t index = parameters_.plan().segment_of(run.begin);
  const TensorView all_n = parameters_.segment_gradients(index);
  const TensorView run_n = flat_view(
      all_n, parameters_.plan().segments[index].begin, run.begin, {{run.count}, all_n.dtype});
  groups_.kv_sharers().run(AllReduce{.y = run_n, .x = run_n}, "optimizer.shared_kv", stream_);
}

void GradientReduction::start(const Together& together) {
  Pending pending{.together = &together, .reduction = nullptr};
  if (together.replicated) {
    sums_.clear();
    for (const std::size_t segment : together.segments) {
      const Segment& s = parameters_.plan().segments[segment];
      const TensorView all_n = parameters_.segment_gradients(segment);
      const TensorView piece_n =
          flat_view(all_n, s.begin, s.piece.begin, {{s.piece.count}, all_n.dtype});
      sums_.push_back(s.sharded() ? Sum(ReduceScatter{.y = piece_n, .x = all_n})
                                  : Sum(AllReduce{.y = all_n, .x = all_n}));
    }
    pending.reduction = groups_.replicas(together.replicas)
                            .start(Sums{.parts = sums_}, "optimizer.gradients", stream_);
  }
  if (pending.reduction || each_) {
    pending_.push_back(std::move(pending));
  }
}

void GradientReduction::complete(const Pending& pending) {
  if (pending.reduction) {
    pending.reduction->wait(stream_);
  }
  if (each_) {
    for (const std::size_t segment : pending.together->segments) {
      add_term(segment);
    }
  }
}

void GradientReduction::add_term(std::size_t segment) {
  const Segment& s = parameters_.plan().segments[segment];
  const TensorView all_n = parameters_.segment_gradients(segment);
  const TensorView sum_n = parameters_.segment_sums(segment);
  const TensorView term_n =
      flat_view(all_n, s.begin, s.owned.begin, {{s.owned.count}, all_n.dtype});
  if (has_sum_[segment]) {
    kernels::add({.y = sum_n, .a = sum_n, .b = term_n}, stream_);
  } else {
    device_copy(sum_n.data, term_n.data, sum_n.bytes(), stream_);
    has_sum_[segment] = true;
  }
}

bool GradientReduction::overlap(std::size_t a, std::size_t b) const {
  const auto elements = [&](std::size_t index) {
    const Segment& segment = parameters_.plan().segments[index];
    return Range{.begin = segment.gradient_begin, .count = segment.num_elements};
  };
  return intersection(elements(a), elements(b)).count > 0;
}

void GradientReduction::finish() {
  for (const Pending& pending : pending_) {
    complete(pending);
  }
  pending_.clear();
  sum_tied_embedding();
}

// Both ranks have reduced theirs over their replicas, which are cut at the same elements: so each
// pair sums the same piece.
void GradientReduction::sum_tied_embedding() {
  const std::vector<Segment>& segments = parameters_.plan().segments;
  for (std::size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].tied != Tied::no) {
      const TensorView sum_n = parameters_.segment_sums(i);
      groups_.tied().run(AllReduce{.y = sum_n, .x = sum_n}, "optimizer.tied_gradient", stream_);
    }
  }
}

}  // namespace memphis
