// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/schedule.h"

#include <algorithm>
#include <limits>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

// Numbers of stages and micro-batches are 32 bits wide in an action.
constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

// A list in the making. Micro-batches beyond the last of the step are left out: ZBV's rule is
// written for at least 2 num_ranks - 1 of them.
class ActionList {
 public:
  ActionList(const PipelineShape& shape, std::int64_t rank) : shape_(shape), rank_(rank) {
    const std::int64_t passes =
        shape.forward_only ? 1 : (shape.kind == ScheduleKind::zb_h1 || is_v() ? 3 : 2);
    actions_.reserve(static_cast<std::size_t>(passes * shape.num_chunks * shape.num_micro_batches));
  }

  void forward(std::int64_t chunk, std::int64_t micro_batch) {
    add(ActionKind::forward, chunk, micro_batch);
  }
  // The backward pass that comes next is done together with this one, if there are pairs.
  void forward_with_next(std::int64_t chunk, std::int64_t micro_batch) {
    const std::size_t before = actions_.size();
    forward(chunk, micro_batch);
    if (actions_.size() > before) {
      actions_.back().with_next = shape_.paired && !shape_.forward_only;
    }
  }
  // The rest is no part of validation.
  void backward(std::int64_t chunk, std::int64_t micro_batch) {
    add(ActionKind::backward, chunk, micro_batch);
  }
  void inputs(std::int64_t chunk, std::int64_t micro_batch) {
    add(ActionKind::backward_inputs, chunk, micro_batch);
  }
  void weights(std::int64_t chunk, std::int64_t micro_batch) {
    Action* const last = actions_.empty() ? nullptr : &actions_.back();
    if (last != nullptr && last->stage == 0 && last->kind == ActionKind::backward_inputs &&
        last->chunk == chunk && last->micro_batch == micro_batch) {
      last->kind = ActionKind::backward;
      return;
    }
    add(ActionKind::backward_weights, chunk, micro_batch);
  }

  std::vector<Action> take() { return std::move(actions_); }

 private:
  bool is_v() const { return placement_of(shape_.kind) == StagePlacement::v; }

  void add(ActionKind kind, std::int64_t chunk, std::int64_t micro_batch) {
    if (micro_batch >= shape_.num_micro_batches ||
        (shape_.forward_only && kind != ActionKind::forward)) {
      return;
    }
    actions_.push_back(
        {.kind = kind,
         .chunk = static_cast<std::int32_t>(chunk),
         .stage = static_cast<std::int32_t>(shape_.stage_of({.rank = rank_, .chunk = chunk})),
         .micro_batch = static_cast<std::int32_t>(micro_batch)});
  }

  const PipelineShape& shape_;
  std::int64_t rank_;
  std::vector<Action> actions_;
};

// A pass of one micro-batch through one chunk of a rank.
struct Pass {
  std::int64_t chunk;
  std::int64_t micro_batch;
};

// A rank's passes in the order of their forward half: group by group, each through one chunk after
// the other. The u-th backward pass has the chunks the other way round.
//
// A last group of what is left over would be simpler, and deadlocks: with 4 ranks, 3 chunks and 5
// micro-batches the first rank waits for micro-batch 4 to come round before the backward pass that
// the last rank needs to let it through.
class Groups {
 public:
  explicit Groups(const PipelineShape& shape)
      : num_chunks_(shape.num_chunks),
        count_(num_groups(shape)),
        size_(shape.num_micro_batches / count_),
        num_larger_(shape.num_micro_batches % count_) {}

  static std::int64_t num_groups(const PipelineShape& shape) {
    const std::int64_t least = shape.group == 0 ? shape.num_ranks : shape.group;
    return std::max<std::int64_t>(shape.num_micro_batches / least, 1);
  }

  // The first num_larger_ groups have one micro-batch more.
  std::int64_t largest() const { return size_ + (num_larger_ > 0 ? 1 : 0); }

  Pass pass(std::int64_t u) const {
    const std::int64_t in_larger = num_larger_ * (size_ + 1) * num_chunks_;
    if (u < in_larger) {
      return pass_of(u, size_ + 1, 0);
    }
    return pass_of(u - in_larger, size_, num_larger_ * (size_ + 1));
  }

 private:
  Pass pass_of(std::int64_t u, std::int64_t size, std::int64_t begin) const {
    const std::int64_t group = u / (size * num_chunks_);
    const std::int64_t in_group = u % (size * num_chunks_);
    return {.chunk = in_group / size, .micro_batch = begin + group * size + in_group % size};
  }

  std::int64_t num_chunks_;
  std::int64_t count_;
  std::int64_t size_;
  std::int64_t num_larger_;
};

// Warm-up, then a forward and a backward pass in turn, then what backward passes are left. With one
// chunk a rank this is 1F1B.
void add_interleaved(const PipelineShape& shape, std::int64_t rank, ActionList& list) {
  const std::int64_t p = shape.num_ranks;
  const std::int64_t v = shape.num_chunks;
  const Groups groups(shape);
  const std::int64_t passes = shape.num_micro_batches * v;
  const std::int64_t after = p - 1 - rank;
  // The first backward pass comes when the last chunk's first forward pass has: on the last rank
  // after a group in each chunk before, on a rank before it two passes later, which is how long the
  // next rank takes for its forward and its backward pass. With one chunk no group is between. The
  // backward pass of a pair needs a forward pass that has been before.
  const std::int64_t warm_up = std::min(shape.paired ? 2 * after + (v - 1) * groups.largest() + 1
                                        : v == 1     ? after
                                                     : 2 * after + (v - 1) * groups.largest(),
                                        passes);
  const auto forward = [&](std::int64_t u) {
    const Pass pass = groups.pass(u);
    list.forward(pass.chunk, pass.micro_batch);
  };
  const auto forward_with_next = [&](std::int64_t u) {
    const Pass pass = groups.pass(u);
    list.forward_with_next(pass.chunk, pass.micro_batch);
  };
  const auto backward = [&](std::int64_t u) {
    const Pass pass = groups.pass(u);
    list.backward(v - 1 - pass.chunk, pass.micro_batch);
  };
  for (std::int64_t u = 0; u < warm_up; ++u) {
    forward(u);
  }
  for (std::int64_t u = warm_up; u < passes; ++u) {
    forward_with_next(u);
    backward(u - warm_up);
  }
  for (std::int64_t u = passes - warm_up; u < passes; ++u) {
    backward(u);
  }
}

// Rank r puts its gradients of weights off by r micro-batches: they fill the time in which 1F1B
// waits at its end.
void add_zb_h1(const PipelineShape& shape, std::int64_t rank, ActionList& list) {
  const std::int64_t m = shape.num_micro_batches;
  const std::int64_t after = shape.num_ranks - 1 - rank;
  const std::int64_t warm_up = std::min(shape.paired ? 2 * after + 1 : after, m);
  for (std::int64_t i = 0; i < warm_up; ++i) {
    list.forward(0, i);
  }
  for (std::int64_t i = 0; i < m; ++i) {
    list.forward_with_next(0, warm_up + i);
    list.inputs(0, i);
    if (i >= rank) {
      list.weights(0, i - rank);
    }
  }
  for (std::int64_t i = std::max<std::int64_t>(m - rank, 0); i < m; ++i) {
    list.weights(0, i);
  }
}

// Chunk a on the way down the V, z on the way up.
void add_zbv(const PipelineShape& shape, std::int64_t rank, ActionList& list) {
  const std::int64_t p = shape.num_ranks;
  const std::int64_t micro_batches = std::max(2 * p - 1, shape.num_micro_batches);
  struct Chunk {
    std::int64_t index;
    std::int64_t forwards = 0;
    std::int64_t inputs = 0;
    std::int64_t weights = 0;
  };
  Chunk a{.index = 0};
  Chunk z{.index = 1};
  const auto forward = [&](Chunk& chunk) { list.forward(chunk.index, chunk.forwards++); };
  const auto inputs = [&](Chunk& chunk) { list.inputs(chunk.index, chunk.inputs++); };
  const auto weights = [&](Chunk& chunk) { list.weights(chunk.index, chunk.weights++); };
  for (std::int64_t i = 0; i < 2 * (p - rank) - 1; ++i) {
    forward(a);
  }
  for (std::int64_t i = 0; i < rank; ++i) {
    forward(z);
    forward(a);
  }
  for (std::int64_t i = 0; i < p - rank; ++i) {
    forward(z);
    inputs(z);
    weights(z);
  }
  while (z.forwards < micro_batches) {
    if (a.forwards < micro_batches) {
      forward(a);
    }
    inputs(a);
    weights(a);
    forward(z);
    inputs(z);
    weights(z);
  }
  for (std::int64_t i = 0; i < rank; ++i) {
    inputs(a);
    inputs(z);
  }
  for (std::int64_t i = 0; i < p - rank; ++i) {
    inputs(a);
    weights(a);
  }
  while (z.weights < micro_batches) {
    weights(z);
  }
  while (a.weights < micro_batches) {
    weights(a);
  }
}

}  // namespace

std::string_view name_of(ScheduleKind kind) {
  return rule_of(kind).name;
}

StagePlacement placement_of(ScheduleKind kind) {
  return kind == ScheduleKind::zbv ? StagePlacement::v : StagePlacement::loop;
}

std::int64_t stage_of(StagePlacement placement, std::int64_t num_ranks, const StagePlace& place) {
  if (placement == StagePlacement::v && place.chunk == 1) {
    return 2 * num_ranks - 1 - place.rank;
  }
  return place.chunk * num_ranks + place.rank;
}

StagePlace place_of(StagePlacement placement, std::int64_t num_ranks, std::int64_t stage) {
  const std::int64_t chunk = stage / num_ranks;
  const bool upwards = placement == StagePlacement::v && chunk == 1;
  return {.rank = upwards ? 2 * num_ranks - 1 - stage : stage % num_ranks, .chunk = chunk};
}

std::int64_t PipelineShape::stage_of(const StagePlace& place) const {
  return memphis::stage_of(placement_of(kind), num_ranks, place);
}

StagePlace PipelineShape::place_of(std::int64_t stage) const {
  return memphis::place_of(placement_of(kind), num_ranks, stage);
}

PipelineShape pipeline_shape(const ParallelConfig& parallel, std::int64_t num_micro_batches) {
  return {.kind = parallel.schedule,
          .num_ranks = parallel.pipeline,
          .num_chunks = num_chunks(parallel),
          .num_micro_batches = num_micro_batches};
}

void require_runs(const PipelineShape& shape) {
  const std::string_view name = name_of(shape.kind);
  const auto at_least_one = [&](std::int64_t value, std::string_view what, std::string_view why) {
    if (value < 1 || value > kMost) {
      throw ConfigError(fmt::format("schedule {} cannot have {} {} ({}); use {}",
                                    name,
                                    value,
                                    what,
                                    why,
                                    value < 1 ? "1 or more" : fmt::format("at most {}", kMost)));
    }
  };
  at_least_one(shape.num_ranks, "pipeline ranks", "each holds a part of the model");
  at_least_one(shape.num_chunks, "chunks a rank", "each is a run of the model's layers");
  at_least_one(shape.num_micro_batches, "micro-batches a step", "they are what the ranks pass on");
  if (shape.num_chunks > kMost / shape.num_ranks) {
    throw ConfigError(
        fmt::format("schedule {} cannot have {} chunks on each of {} ranks (stages "
                    "are counted in 32 bits); use at most {} chunks",
                    name,
                    shape.num_chunks,
                    shape.num_ranks,
                    kMost / shape.num_ranks));
  }
  const ScheduleRule& rule = rule_of(shape.kind);
  // More than the user may ask for: interleaved of one chunk is 1f1b.
  if (!rule.takes_more && shape.num_chunks != rule.num_chunks) {
    throw ConfigError(
        fmt::format("schedule {} cannot have {} chunk{} a rank ({}); use {} chunk{}, "
                    "or schedule {}",
                    name,
                    shape.num_chunks,
                    shape.num_chunks == 1 ? "" : "s",
                    rule.why,
                    rule.num_chunks,
                    rule.num_chunks == 1 ? "" : "s",
                    shape.num_chunks == 1 ? "zb-h1" : "interleaved"));
  }
  if (shape.paired && shape.kind == ScheduleKind::zbv) {
    throw ConfigError(fmt::format(
        "schedule {} has no pairs of passes (where its V turns, a backward pass follows "
        "the forward pass of the same micro-batch); use interleaved",
        name));
  }
  if (shape.group < 0) {
    throw ConfigError(
        fmt::format("a group cannot have {} micro-batches (so many pass through a "
                    "chunk before the next has its turn); use {} or more",
                    shape.group,
                    shape.num_ranks));
  }
  if (shape.group != 0 && shape.kind != ScheduleKind::interleaved) {
    throw ConfigError(
        fmt::format("schedule {} has no groups of {} micro-batches (only chunks of "
                    "schedule interleaved take turns by groups); use 0",
                    name,
                    shape.group));
  }
  if (shape.num_chunks > 1 && shape.group != 0 && shape.group < shape.num_ranks &&
      Groups::num_groups(shape) > 1) {
    throw ConfigError(
        fmt::format("groups of {} are too small for {} pipeline ranks (the first "
                    "micro-batch of a group has not gone round when the next chunk "
                    "has its turn, and ranks could wait for each other forever); use "
                    "{} or more",
                    shape.group,
                    shape.num_ranks,
                    shape.num_ranks));
  }
}

std::string_view name_of(ActionKind kind) {
  switch (kind) {
    case ActionKind::forward:
      return "forward";
    case ActionKind::backward:
      return "backward";
    case ActionKind::backward_inputs:
      return "backward of inputs";
    case ActionKind::backward_weights:
      return "backward of weights";
  }
  return "?";
}

std::string describe(const Action& action) {
  return fmt::format("{} of micro-batch {} in stage {}, chunk {}",
                     name_of(action.kind),
                     action.micro_batch,
                     action.stage,
                     action.chunk);
}

std::vector<Action> make_actions(const PipelineShape& shape, std::int64_t rank) {
  require_runs(shape);
  require(rank >= 0 && rank < shape.num_ranks,
          fmt::format("a pipeline of {} ranks has no rank {}", shape.num_ranks, rank));
  ActionList list(shape, rank);
  switch (shape.kind) {
    case ScheduleKind::one_f_one_b:
    case ScheduleKind::interleaved:
      add_interleaved(shape, rank, list);
      break;
    case ScheduleKind::zb_h1:
      add_zb_h1(shape, rank, list);
      break;
    case ScheduleKind::zbv:
      add_zbv(shape, rank, list);
      break;
  }
  return list.take();
}

}  // namespace memphis
