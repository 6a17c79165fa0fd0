// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/arena.h"
#include "csrc/model/parameters.h"

namespace memphis {

// AdamW over all parameters. Owner of the moments and of the master weights of those segments whose
// weights are narrower than f32; the other segments' weights are their own master.
class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config, Parameters& parameters);

  std::size_t master_allocated_bytes() const { return master_arena_.capacity_bytes(); }
  std::size_t moments_allocated_bytes() const { return moments_arena_.capacity_bytes(); }

  // After the weights have been initialised, and before the first step of a run that starts at 0.
  void copy_weights_to_master(Stream stream);

  // Writes the norm of the whole gradient, before clipping, to norm_1.
  void measure_gradient(const TensorView& norm_1, const TensorView& partial_P, Stream stream);

  // Step number `step`, counted from 1, with the gradient as it lies and its norm.
  void step(double learning_rate, std::int64_t step, const TensorView& norm_1, Stream stream);

  // A tensor of the optimizer's state, with the dims of the logical parameter that it belongs to.
  struct StateTensor {
    std::string name;  // the parameter's, followed by .master, .m or .v
    TensorView view;
  };
  std::vector<StateTensor> state() const;

 private:
  struct SegmentState {
    TensorView master_n;  // the weights themselves where they are wide enough
    bool owns_master = false;
    TensorView m_n;
    TensorView v_n;
  };

  OptimizerConfig config_;
  Parameters& parameters_;
  Arena master_arena_;
  Arena moments_arena_;
  TensorView m_n_;
  TensorView v_n_;
  std::vector<SegmentState> segments_;
};

}  // namespace memphis
