// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/arena.h"
#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"
#include "csrc/model/weight_residency.h"
#include "csrc/plan/memory.h"

namespace memphis {

// Whether weights of this dtype have master weights apart from them.
bool keeps_master(DType weights);

// Whoever reads weights and the optimizer's state while a step is under way: they change in the
// optimizer's step alone, a segment at a time, which waits for its reader first.
class UpdateGate {
 public:
  virtual ~UpdateGate() = default;
  // Whether nothing is left to wait for.
  virtual bool is_open() const = 0;
  // The CPU's segment may be changed on return, the GPU's by what follows on `stream`. Called for
  // all segments of a step, ascending.
  virtual void await(std::size_t segment, Stream stream) = 0;
};

// AdamW over all parameters, the state of each element on one of the ranks that hold it (ZeRO-1) or
// on all of them. Owner of the moments and of the master weights of those segments whose weights
// are narrower than f32; the other segments' weights are their own master.
//
// Every rank of `groups` makes the same calls.
//
// Source: Rajbhandari et al. 2019, arXiv:1910.02054 (ZeRO-1).
class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config,
            WeightResidency& residency,
            const Groups& groups,
            const NormScratch& scratch);

  std::size_t master_allocated_bytes() const { return master_arena_.capacity_bytes(); }
  std::size_t moments_allocated_bytes() const { return moments_arena_.capacity_bytes(); }
  std::size_t scratch_allocated_bytes() const { return norms_arena_.capacity_bytes(); }

  // After the weights have been initialised, and before the first step of a run that starts at 0.
  void copy_weights_to_master(Stream stream);

  // The rank that has a copy of the tied embedding gets its weights: after they have been
  // initialised or loaded on the other one.
  void copy_tied_embedding(Stream stream);

  // Writes the norm of the whole gradient, before clipping, to norm_1. Gradients are reduced.
  void measure_gradient(const TensorView& norm_1, const TensorView& partial_P, Stream stream);

  // What step() reads of a step, for StepScalar::rates: of number `step`, counted from 1.
  std::array<double, 3> rates(double learning_rate, std::int64_t step) const;

  // A step with the gradient as it lies, its norm and its rates, both on the device. Weights that
  // other ranks keep are then on their way, or stale: see WeightResidency.
  void step(const TensorView& rates_3, const TensorView& norm_1, Stream stream);

  // What each step waits for from now on, and no longer. In the order in which they were added.
  void add_gate(UpdateGate& gate) { gates_.push_back(&gate); }
  void remove_gate(UpdateGate& gate) { std::erase(gates_, &gate); }
  // Whether the next step waits. It cannot be part of a graph then: what it waits for is not.
  bool waits() const;

  // Of a segment's owned elements; nothing of a copy's.
  struct SegmentState {
    TensorView master_n;  // the weights themselves where they are wide enough
    bool owns_master = false;
    TensorView m_n;
    TensorView v_n;
  };
  const SegmentState& segment_state(std::size_t segment) const { return segments_.at(segment); }

  // A run of the optimizer's state: elements `local` of this rank's part of a logical parameter.
  struct StateTensor {
    std::string name;  // the parameter's, followed by .master, .m or .v
    const LogicalParameter* parameter;
    Range local;
    TensorView view;  // [local.count]
  };
  std::vector<StateTensor> state() const;

 private:
  OptimizerConfig config_;
  WeightResidency& residency_;
  Parameters& parameters_;
  const Groups& groups_;
  std::vector<UpdateGate*> gates_;
  Arena norms_arena_;
  TensorView runs_PW_;
  TensorView layers_LW_;
  TensorView ranks_PLW_;
  Arena master_arena_;
  Arena moments_arena_;
  std::vector<SegmentState> segments_;
};

}  // namespace memphis
