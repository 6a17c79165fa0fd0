// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/weight_residency.h"

#include "csrc/core/error.h"

namespace memphis {

WeightResidency::WeightResidency(Parameters& parameters, const Groups& groups, Stream stream)
    : parameters_(parameters),
      groups_(groups),
      stream_(stream),
      states_(parameters.plan().segments.size()),
      users_(static_cast<std::size_t>(parameters.plan().num_weight_places)) {}

WeightResidency::Use WeightResidency::acquire(int layer, std::optional<int> next) {
  start(layer);
  if (next) {
    start(*next);
  }
  for (std::size_t i = 0; i < states_.size(); ++i) {
    if (segment(i).layer != layer) {
      continue;
    }
    await(states_[i]);
    if (segment(i).place) {
      users_[*segment(i).place] = layer;
    }
  }
  return {*this, layer};
}

void WeightResidency::release(int layer) {
  for (std::optional<int>& user : users_) {
    if (user == layer) {
      user.reset();
    }
  }
}

void WeightResidency::changed(std::size_t index) {
  State& state = states_[index];
  await(state);
  state.current = false;
  if (parameters_.plan().comes_after_step(segment(index))) {
    gather(index);
  }
}

void WeightResidency::await_all() {
  for (State& state : states_) {
    await(state);
  }
}

void WeightResidency::start(int layer) {
  for (std::size_t i = 0; i < states_.size(); ++i) {
    if (segment(i).place && segment(i).layer == layer && !states_[i].current) {
      gather(i);
    }
  }
}

void WeightResidency::gather(std::size_t index) {
  const Segment& s = segment(index);
  if (s.place) {
    const std::optional<int>& user = users_[*s.place];
    require(!user || user == s.layer, "a layer's weights come once nobody uses their place");
    for (std::size_t i = 0; i < states_.size(); ++i) {
      if (segment(i).place == s.place && segment(i).layer != s.layer) {
        await(states_[i]);
        states_[i].current = false;
      }
    }
    states_[index].current = true;
  }
  states_[index].arrival = groups_.replicas(s.replicas)
                               .start(AllGather{.y = parameters_.segment_weights(index),
                                                .x = parameters_.owned_weights(index)},
                                      s.place ? "layer.weights" : "optimizer.weights",
                                      stream_);
}

void WeightResidency::await(State& state) {
  if (state.arrival) {
    state.arrival->wait(stream_);
    state.arrival.reset();
  }
}

}  // namespace memphis
