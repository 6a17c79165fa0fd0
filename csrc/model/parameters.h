// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "csrc/core/arena.h"
#include "csrc/plan/parameters.h"

namespace memphis {

// Owner of a rank's weights and, for training, of their gradients, laid out as the plan says.
class Parameters {
 public:
  enum class Gradients : bool { none = false, allocate = true };

  // What `plan` says, which was made for `compute`.
  Parameters(ParameterPlan plan, DType compute, Device device, Gradients gradients);

  const ParameterPlan& plan() const { return plan_; }
  DType compute() const { return compute_; }
  Device device() const { return weights_arena_.device(); }
  std::size_t allocated_bytes() const;

  const ModelParameters<TensorView>& weights() const { return weights_; }
  const ModelParameters<TensorView>& gradients() const { return gradients_; }

  // Flat arrays, of one segment. Under ZeRO-3 a layer's weights are whole where WeightResidency
  // says so; what this rank owns of them is always there.
  TensorView segment_weights(std::size_t segment) const;
  TensorView owned_weights(std::size_t segment) const;
  // What the backward pass writes or adds to; in the accumulation dtype, as the others. Elements
  // between tensors are zero from the beginning and remain so.
  TensorView segment_gradients(std::size_t segment) const;
  // Of the elements whose optimizer state this rank keeps, a part of those or under ZeRO-2 beside
  // them: the sum over ranks and micro-batches, once it is there.
  TensorView segment_sums(std::size_t segment) const;
  // Of `run`, which lies within the owned elements of a segment.
  TensorView sums(const Range& run) const;

  // The weights of this rank's part of one logical parameter.
  TensorView logical_weights(const LogicalParameter& parameter) const;
  // What of the part is always there: all of it, or under ZeRO-3 what this rank owns.
  Range held(const LogicalParameter& parameter) const;
  // Elements `local` of the part, which are held; flat.
  TensorView held_weights(const LogicalParameter& parameter, const Range& local) const;

  // Draws the weights of step 0. Element i of a parameter is a pure function of (seed, its name,
  // i): the same bits in every layout and on every device. Elements that are held.
  void initialise(std::uint64_t seed, Stream stream);

 private:
  ParameterPlan plan_;
  DType compute_;
  Arena weights_arena_;
  std::optional<Arena> gradients_arena_;
  std::vector<TensorView> segment_weights_;
  std::vector<TensorView> owned_weights_;
  TensorView gradients_n_;
  TensorView sums_n_;  // ZeRO-2
  ModelParameters<TensorView> weights_;
  ModelParameters<TensorView> gradients_;
};

// Elements [begin, begin + spec's count) of a flat array whose first element is element `origin` of
// the plan's index space, with the dims of `spec` and the dtype of the array.
TensorView flat_view(const TensorView& flat_n,
                     std::int64_t origin,
                     std::int64_t begin,
                     const TensorSpec& spec);

}  // namespace memphis
