// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/config/config.h"

// Which work a pipeline rank does, in which order. The model is cut into num_ranks x num_chunks
// stages (csrc/plan/stages.h); a step's micro-batches pass through all of them forward and then
// backward. A schedule is a list of actions a rank, a pure function of the shape: no device, no
// communicator, no clock. csrc/plan/schedule_messages.h adds what ranks send each other,
// schedule_check.h proves that the lists can be run, schedule_simulation.h prices them.
namespace memphis {

// What each ScheduleKind is; the user gives it the name that name_of() says, which csrc/config
// lists. F is a forward pass, B a backward pass; where B is cut in two, I is the gradient of the
// inputs, which the stage before waits for, and W the gradient of the weights, which nobody waits
// for.
//
//   1f1b         one chunk a rank; forward and backward passes take turns after a warm-up, so that
//                rank r holds num_ranks - r micro-batches. Narayanan et al., arXiv:1806.03377;
//                Fan et al., arXiv:2007.01045.
//   interleaved  several chunks a rank, whose turns come in groups of micro-batches: the bubble is
//                num_chunks times shorter, and there are so many times the messages. Narayanan et
//                al., arXiv:2104.04473.
//   zb-h1        1f1b with I and W apart; W fills what was a bubble, and every rank holds num_ranks
//                micro-batches. Qi et al., arXiv:2401.10241.
//   zbv          two chunks a rank in a V, I and W apart: no bubble where F, I and W take the same
//                time and there are micro-batches enough, in the memory of zb-h1. Qi et al.,
//                arXiv:2405.15362.
std::string_view name_of(ScheduleKind kind);

// On which rank a stage lies. Stages are numbered in the order of the model.
//   loop  stage s on rank s % num_ranks: chunk c of rank r is stage c num_ranks + r
//   v     two chunks: rank r has stages r and 2 num_ranks - 1 - r, so that the first and the last
//         stage, with the embedding and the head, are neighbours on rank 0
enum class StagePlacement : std::uint8_t { loop, v };

StagePlacement placement_of(ScheduleKind kind);

struct StagePlace {
  std::int64_t rank = 0;
  std::int64_t chunk = 0;

  bool operator==(const StagePlace&) const = default;
};

std::int64_t stage_of(StagePlacement placement, std::int64_t num_ranks, const StagePlace& place);
StagePlace place_of(StagePlacement placement, std::int64_t num_ranks, std::int64_t stage);

struct PipelineShape {
  ScheduleKind kind = ScheduleKind::one_f_one_b;
  std::int64_t num_ranks = 1;          // along Axis::pipeline
  std::int64_t num_chunks = 1;         // stages a rank
  std::int64_t num_micro_batches = 1;  // of a step
  // Of interleaved: at least so many micro-batches, or all, pass through one chunk before the next
  // chunk has its turn. They form as many groups as there can be, of nearly equal size, so that the
  // bubble is the same for any number of micro-batches from num_ranks on. 0: num_ranks, which holds
  // least; more give the message from the last rank to the first more time.
  std::int64_t group = 0;
  // Validation: forward passes alone, in an order in which no rank waits for longer than it must.
  bool forward_only = false;
  // A forward pass and the backward pass behind it, which are of different micro-batches, are done
  // together: while rows of one travel to experts, the other computes. Where every rank takes as
  // long for a pair, a micro-batch is as many pairs on its way as there are ranks behind, in each
  // direction, so that a rank begins with 2 (num_ranks - 1 - rank) + 1 forward passes in 1f1b and
  // zb-h1, and in interleaved with one more than otherwise: so many more micro-batches are held.
  bool paired = false;

  std::int64_t num_stages() const { return num_ranks * num_chunks; }
  std::int64_t stage_of(const StagePlace& place) const;
  StagePlace place_of(std::int64_t stage) const;
  // Whether `rank` has it; not where there is no such stage, before the first or behind the last.
  bool is_on(std::int64_t rank, std::int64_t stage) const {
    return stage >= 0 && stage < num_stages() && place_of(stage).rank == rank;
  }

  bool operator==(const PipelineShape&) const = default;
};

// As the config says, for a step of so many micro-batches on each rank.
PipelineShape pipeline_shape(const ParallelConfig& parallel, std::int64_t num_micro_batches);

// ConfigError if there is no such schedule, with the nearest value that there is one for.
void require_runs(const PipelineShape& shape);

enum class ActionKind : std::uint8_t { forward, backward, backward_inputs, backward_weights };

std::string_view name_of(ActionKind kind);

// What a rank does without a break for one micro-batch in one of its stages. `backward` is
// backward_inputs and then backward_weights.
struct Action {
  ActionKind kind = ActionKind::forward;
  std::int32_t chunk = 0;
  std::int32_t stage = 0;  // of chunk, for those who do not know the rank
  std::int32_t micro_batch = 0;
  // Of a forward pass: it is done together with the next action, a backward pass that does not need
  // it. Both have their inputs before either begins, and hand on what they have made at the end.
  bool with_next = false;

  bool operator==(const Action&) const = default;
};

// "forward of micro-batch 5 in stage 2, chunk 0", for the log, the watchdog, a trace and errors.
std::string describe(const Action& action);

inline bool makes_input_gradient(ActionKind kind) {
  return kind == ActionKind::backward || kind == ActionKind::backward_inputs;
}
inline bool makes_weight_gradient(ActionKind kind) {
  return kind == ActionKind::backward || kind == ActionKind::backward_weights;
}

// The actions of `rank` in a step, in their order.
//
// Each micro-batch   has one F in each stage of the rank and, unless forward_only, one B or one I
//                    and one W, in this order.
// Order              within a stage, forward passes come in ascending order of micro-batches, and
//                    so do gradients of inputs, and gradients of weights. So a sum over
//                    micro-batches has the same bits in every schedule, the held micro-batches of
//                    a stage are a run of neighbours, and micro-batch b of n held may lie in slot
//                    b % n.
// One rank           1f1b of one rank is F B F B ...; in pairs, F (F B) (F B) ... B
// Pairs              where the shape has them, every backward pass, or I, that a forward pass comes
//                    right before, once the rank has begun with forward passes alone.
// First stage        sends no gradient: where I and W would be neighbours there, they are one B.
// Errors             ConfigError as require_runs; ContractError if there is no such rank.
// Cost               time and memory of num_micro_batches x num_chunks.
std::vector<Action> make_actions(const PipelineShape& shape, std::int64_t rank);

}  // namespace memphis
