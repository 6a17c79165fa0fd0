// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"

namespace memphis {

// When which weights are whole on this rank, of parameters that ranks share out.
//
//   ZeRO-0      always
//   ZeRO-1, 2   from the time when the pieces of the other ranks have arrived, after each step
//   ZeRO-3      of a layer, while a Use of it lives, and as long after that as no other layer has
//               taken the place; what comes before and after the layers, as under ZeRO-2
//
// Both passes acquire a layer before they use its weights, and say which is next, whose weights
// come while this one is at work. Layers take turns in the places that the plan gives, so the
// layers that a pass ends with need not come again for the one that follows.
//
// Layers are counted in the model; kBeforeLayers is the embedding, and the number of layers is what
// comes after them. Every rank of `groups` makes the same calls.
//
// Async    weights are there for what is enqueued on `stream` while a Use lives.
// Errors   ContractError if a layer would take the place of one that is in use.
// Source   Rajbhandari et al. 2019, arXiv:1910.02054; Zhao et al. 2023, arXiv:2304.11277.
class WeightResidency {
 public:
  // All referents must outlive it.
  WeightResidency(Parameters& parameters, const Groups& groups, Stream stream);

  Parameters& parameters() const { return parameters_; }

  // A layer that is in use, until its end.
  class Use {
   public:
    Use(WeightResidency& residency, int layer) : residency_(&residency), layer_(layer) {}
    ~Use() { end(); }
    Use(Use&& other) noexcept
        : residency_(std::exchange(other.residency_, nullptr)), layer_(other.layer_) {}
    Use& operator=(Use&& other) noexcept {
      end();
      residency_ = std::exchange(other.residency_, nullptr);
      layer_ = other.layer_;
      return *this;
    }

   private:
    void end() {
      if (residency_ != nullptr) {
        residency_->release(layer_);
      }
    }

    WeightResidency* residency_;
    int layer_;
  };
  [[nodiscard]] Use acquire(int layer, std::optional<int> next = std::nullopt);

  // This layer is next, as in acquire: for a pass that has two layers in use at a time, where one ends
  // and the other begins. The place of the one after that is free only when the first has left it.
  void expect(int layer) { start(layer); }

  // The elements of a segment that this rank owns have new values; those of other ranks have too,
  // in the order of segments. Weights that are used first, or always whole, are on their way from
  // here.
  void changed(std::size_t segment);

  // All that is on its way has arrived.
  void await_all();

 private:
  // Of a segment.
  struct State {
    std::unique_ptr<Communicator::Work> arrival;  // null: nothing is on its way
    bool current = false;                         // ZeRO-3: it lies whole in its place
  };

  void release(int layer);
  void start(int layer);
  void gather(std::size_t segment);
  void await(State& state);
  const Segment& segment(std::size_t index) const { return parameters_.plan().segments[index]; }

  Parameters& parameters_;
  const Groups& groups_;
  Stream stream_;
  std::vector<State> states_;
  std::vector<std::optional<int>> users_;  // by place, the layer that is in use
};

}  // namespace memphis
