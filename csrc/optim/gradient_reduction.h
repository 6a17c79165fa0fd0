// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/model/grok.h"
#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"
#include "csrc/plan/parameters.h"
#include "kernels/weight_gradient.h"

namespace memphis {

// Sums gradients over micro-batches and over the ranks that hold the same parameters, while the
// backward pass goes on: of a layer all segments of one group of ranks in one call, so that the small
// ones, those of norms and the router, cost no launch and no meeting of their own. At last, over the
// two ranks of a pipeline that have the tied embedding.
//
//   ZeRO-0, 1   a rank adds its micro-batches up, and the ranks' sums are reduced once, under the
//               last backward pass
//   ZeRO-2      each micro-batch's gradients are reduced and added to the piece that this rank
//               keeps, so none but two layers' exist as a whole
//
// The first term of each sum is written: nothing that an earlier step left is cleared or read.
//
// Order       fixed: the same bits in every run of a layout. ZeRO-2 adds in another order.
// Async       see Communicator. What is under way holds its gradients until its turn comes again.
//
// Source: Rajbhandari et al. 2019, arXiv:1910.02054.
class GradientReduction final : public GradientSink {
 public:
  // How follows from the plan of `parameters`.
  GradientReduction(Parameters& parameters, const Groups& groups, Stream stream);

  void begin_step();

  // For Grok::backward of a micro-batch: whether it writes the gradients, as the first of a step
  // does, or adds to those of the ones before. Schedules have micro-batches in ascending order in
  // each stage and each part of the backward pass, so that the first is the same one everywhere.
  kernels::WeightGradient weight_gradient(bool first) const {
    return each_ || first ? kernels::WeightGradient::write : kernels::WeightGradient::add;
  }

  // For the same; null where nothing is reduced yet.
  GradientSink* of_micro_batch(bool last) { return each_ || last ? this : nullptr; }

  // Parameters::segment_sums are there for what follows on the stream.
  void finish();

  void before_backward(int layer) override;
  void after_backward(int layer) override;

 private:
  // Segments of a layer whose gradients are summed in one call, or that have none to be summed with.
  struct Together {
    int layer;
    Axis replicas;
    bool replicated;
    std::vector<std::size_t> segments;
  };
  struct Pending {
    const Together* together;
    std::unique_ptr<Communicator::Work> reduction;  // null where there is nothing to reduce
  };

  void sum_shared_heads(int layer);
  void sum_tied_embedding();
  void start(const Together& together);
  void complete(const Pending& pending);
  void add_term(std::size_t segment);
  bool overlap(std::size_t a, std::size_t b) const;

  Parameters& parameters_;
  const Groups& groups_;
  bool each_;  // micro-batch is reduced: ZeRO-2
  int num_layers_;
  Stream stream_;
  std::vector<Together> together_;  // in the order of their first segments
  std::vector<Sum> sums_;           // of the call that is made
  std::vector<Pending> pending_;    // in the order of their start
  std::vector<bool> has_sum_;       // ZeRO-2, by segment: of this step
};

}  // namespace memphis
