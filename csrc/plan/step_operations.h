// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/core/dtype.h"
#include "csrc/plan/training_plan.h"

// What a rank does in a step, one after the other, layer by layer: csrc/plan/schedule_messages.h
// says in which order stages and micro-batches come, and this what each of them is made of. Nothing
// is guessed: a test holds the list to what a run asks its communicators for. Whoever prices a step
// begins here.
namespace memphis {

enum class OperationKind : std::uint8_t {
  // Work of this rank, of a layer, the embedding or the head.
  forward,
  backward,
  backward_inputs,
  backward_weights,
  recompute,
  update,  // AdamW, of a segment
  // What a rank has of weights: whole from here on, its own piece alone from here on.
  gather,
  release,
  // Gradients, over the ranks that have the same parameters.
  reduce,
  // Another collective that the work needs.
  exchange,
  // Messages of a pipeline.
  receive,
  send,
};

std::string_view name_of(OperationKind kind);

// How it moves: the collectives of csrc/comm/communicator.h.
enum class Pattern : std::uint8_t { all_gather, reduce_scatter, all_reduce, all_to_all, broadcast };

constexpr int kNoLayer = -2;

struct StepOperation {
  OperationKind kind = OperationKind::forward;
  // Counted in the model, kBeforeLayers for the embedding and the number of layers for the head; of
  // what is no layer's, kNoLayer and -1.
  int layer = kNoLayer;
  std::int64_t micro_batch = -1;
  // Of what moves: the name of its group ("tensor") and its own ("tensor.sum_terms").
  std::string_view group = {};
  std::string_view name = {};
  Pattern pattern = Pattern::all_gather;
  // Of what moves, in the larger of the two operands. Of rows, which routing deals out, as if every
  // expert had its share.
  std::size_t bytes = 0;
  bool beside = false;  // an exchange that has a product between its start and its wait
  double flops = 0;     // of work, where it is products of matrices and scores

  bool moves() const { return !group.empty(); }
  // What this rank sends of them in a group of so many, by the way that moves least: a gather or a
  // scattered sum moves the whole once but for the rank's own piece, a sum that all have twice.
  double sent_bytes(std::int64_t num_ranks) const;
};

// Of a step in the middle of a run, on the rank that `plan` is of. What a group of one rank would
// move is left out, and so is what ranks tell each other once a step about samples and loads.
//
// Order    that in which the rank's thread asks for it. Gathers and reductions are waited for
//          later, and a receive is begun before it.
// Cost     as many operations as the rank has actions, times the layers of a stage, times ten or
//          twenty.
std::vector<StepOperation> step_operations(const Config& config,
                                           DType compute,
                                           const TrainingPlan& plan);

}  // namespace memphis
