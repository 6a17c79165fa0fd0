// SPDX-License-Identifier: Apache-2.0
//
// The list of csrc/plan/step_operations.h against what ranks ask their communicators for.
#include "csrc/plan/step_operations.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <limits>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"
#include "csrc/plan/flops.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"
#include "tests/support/world_decorator.h"

namespace memphis::test {
namespace {

// What moves, in words; without bytes where routing decides how many.
struct Moved {
  std::string group;
  std::string name;
  Pattern pattern = Pattern::all_gather;
  std::size_t bytes = 0;
  int at_layer = -1;  // where the rank was; of no plan

  bool operator==(const Moved& other) const {
    return std::tie(group, name, pattern, bytes) ==
           std::tie(other.group, other.name, other.pattern, other.bytes);
  }
  std::string describe() const {
    return name + " of " + group + ", pattern " + std::to_string(static_cast<int>(pattern)) + ", " +
           std::to_string(bytes);
  }
};

Pattern pattern_of(const Sum& sum) {
  return std::holds_alternative<ReduceScatter>(sum) ? Pattern::reduce_scatter : Pattern::all_reduce;
}

// Sums that are made together are of one kind.
Pattern pattern_of(const Collective& collective) {
  if (const auto* const sums = std::get_if<Sums>(&collective)) {
    for (const Sum& part : sums->parts) {
      EXPECT_EQ(pattern_of(part), pattern_of(sums->parts.front()));
    }
    return pattern_of(sums->parts.front());
  }
  if (std::holds_alternative<AllGather>(collective)) {
    return Pattern::all_gather;
  }
  if (std::holds_alternative<ReduceScatter>(collective)) {
    return Pattern::reduce_scatter;
  }
  if (std::holds_alternative<AllReduce>(collective)) {
    return Pattern::all_reduce;
  }
  return std::holds_alternative<AllToAll>(collective) ? Pattern::all_to_all : Pattern::broadcast;
}

std::size_t larger_operand(const Broadcast& op) {
  return op.x.bytes();
}
template <class Op>
std::size_t larger_operand(const Op& op) {
  return std::max(op.y.bytes(), op.x.bytes());
}
std::size_t larger_operand(const Sums& op) {
  std::size_t bytes = 0;
  for (const Sum& part : op.parts) {
    bytes += std::visit([](const auto& sum) { return larger_operand(sum); }, part);
  }
  return bytes;
}
std::size_t larger_operand(const Collective& collective) {
  return std::visit([](const auto& op) { return larger_operand(op); }, collective);
}

class RecordingCommunicator final : public CommunicatorDecorator {
 public:
  RecordingCommunicator(std::unique_ptr<Communicator> real,
                        std::string axis,
                        const Activity& activity,
                        std::vector<Moved>& moved)
      : CommunicatorDecorator(std::move(real)),
        axis_(std::move(axis)),
        activity_(activity),
        moved_(moved) {}

 private:
  void before(const Collective& collective, std::string_view name) override {
    if (size() > 1) {
      const Pattern pattern = pattern_of(collective);
      moved_.push_back({axis_,
                        std::string(name),
                        pattern,
                        pattern == Pattern::all_to_all ? 0 : larger_operand(collective),
                        activity_.place().layer});
    }
  }

  std::string axis_;
  const Activity& activity_;
  std::vector<Moved>& moved_;
};

class RecordingWorld final : public WorldDecorator {
 public:
  explicit RecordingWorld(World& real) : WorldDecorator(real) {}

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override {
    auto group = real().create_group(axis, ranks, device, num_channels);
    return std::make_unique<RecordingCommunicator>(
        std::move(group), std::move(axis), activity(), moved);
  }

  std::vector<Moved> moved;
};

bool is_message(const Moved& moved) {
  return moved.name.starts_with("pipeline.");
}

// What ranks tell each other once a step, in host memory.
bool is_bookkeeping(const Moved& moved) {
  return moved.name == "step.samples" || moved.name == "step.expert_load";
}

// Of the messages of a pipeline it matters how many there are: receives are begun ahead.
std::vector<Moved> without_messages(const std::vector<Moved>& moved) {
  std::vector<Moved> result;
  std::copy_if(moved.begin(), moved.end(), std::back_inserter(result), [](const Moved& one) {
    return !is_message(one) && !is_bookkeeping(one);
  });
  return result;
}
std::multiset<std::string> messages_of(const std::vector<Moved>& moved) {
  std::multiset<std::string> result;
  for (const Moved& one : moved) {
    if (is_message(one)) {
      result.insert(one.describe());
    }
  }
  return result;
}

// "" if they are equal, else where they part.
std::string difference(const std::vector<Moved>& actual, const std::vector<Moved>& planned) {
  const auto [a, p] = std::mismatch(actual.begin(), actual.end(), planned.begin(), planned.end());
  if (a == actual.end() && p == planned.end()) {
    return "";
  }
  std::ostringstream text;
  text << "number " << a - actual.begin() << " is "
       << (a == actual.end() ? "the end" : a->describe()) << " and planned is "
       << (p == planned.end() ? "the end" : p->describe());
  return text.str();
}

class StepOperationsTest : public testing::TestWithParam<Layout> {};

TEST_P(StepOperationsTest, AreWhatARunDoes) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  on_ranks(Ranks::threads, GetParam().num_ranks, [&](World& world) {
    RecordingWorld recording(world);
    std::vector<std::string> overrides = run_overrides(GetParam(), "f32");
    overrides.push_back("metrics.validate_every=0");
    RankRun run(recording, yaml, overrides);
    run.trainer().step();
    recording.moved.clear();
    run.trainer().step();
    const std::vector<Moved> actual = std::exchange(recording.moved, {});

    std::vector<Moved> planned;
    const std::vector<StepOperation> operations =
        step_operations(run.config(), DType::f32, run.trainer().plan());
    for (const StepOperation& one : operations) {
      if (one.moves()) {
        planned.push_back({std::string(one.group),
                           std::string(one.name),
                           one.pattern,
                           one.pattern == Pattern::all_to_all ? 0 : one.bytes});
      }
    }
    // A layer's gradients meet those of the other ranks once in each group, small ones with the rest,
    // and so do what its experts are given.
    std::set<std::tuple<std::string_view, std::string_view, int, std::int64_t>> seen;
    for (const StepOperation& one : operations) {
      if (one.name == "optimizer.gradients" || one.name == "moe.balance") {
        EXPECT_TRUE(seen.insert({one.group, one.name, one.layer, one.micro_batch}).second)
            << one.name << " of layer " << one.layer << " over " << one.group;
      }
    }
    EXPECT_EQ(difference(without_messages(actual), without_messages(planned)), "")
        << "rank " << world.rank();
    EXPECT_EQ(messages_of(actual), messages_of(planned)) << "rank " << world.rank();
  });
}

// Weights that layers take turns in come while the layer before is at work, in both passes: a rank
// that asks for them when it needs them waits for all of them.
TEST(StepOperations, GatherALayerWhileAnotherIsAtWork) {
  Layout layout = layout_named("data2_shared_weights");
  layout.overrides.push_back("model.num_layers=5");
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    RecordingWorld recording(world);
    RankRun run(recording, yaml, run_overrides(layout, "f32"));
    run.trainer().step();
    recording.moved.clear();
    run.trainer().step();
    const std::vector<Moved> actual = without_messages(recording.moved);
    std::size_t next = 0;
    int num_gathers = 0;
    for (const StepOperation& one :
         step_operations(run.config(), DType::f32, run.trainer().plan())) {
      if (!one.moves()) {
        continue;
      }
      ASSERT_LT(next, actual.size());
      const Moved& moved = actual[next++];
      if (one.kind == OperationKind::gather && one.micro_batch >= 0) {
        ++num_gathers;
        // A forward pass asks when the layer before begins, a backward pass when that after the one
        // after ends, whose place it takes.
        EXPECT_TRUE(moved.at_layer == one.layer - 1 || moved.at_layer == one.layer + 2)
            << moved.describe() << ", of layer " << one.layer << " at layer " << moved.at_layer;
      }
    }
    EXPECT_GT(num_gathers, 0);
  });
}

std::vector<Layout> cases() {
  std::vector<Layout> result = layouts();
  const auto add = [&](const std::string& name, Layout layout, std::vector<std::string> more) {
    layout.name = name;
    layout.overrides.insert(layout.overrides.end(), more.begin(), more.end());
    result.push_back(std::move(layout));
  };
  // More layers than places for weights, and what is computed again.
  add("shared_weights_of_five_layers",
      layout_named("data2_shared_weights"),
      {"model.num_layers=5", "memory.recompute=norm"});
  for (const char* again : {"norm", "experts", "block", "[attention, geglu]"}) {
    std::string name = std::string("again_") + again;
    std::replace_if(
        name.begin(), name.end(), [](char c) { return std::isalnum(c) == 0; }, '_');
    const std::string recompute = std::string("memory.recompute=") + again;
    add(name, layout_named("data2_tensor2_expert4"), {recompute, "model.dense_ffn_dim=40"});
    add(name + "_whole_sequences", layout_named("tensor2_whole_sequences"), {recompute});
  }
  add("dense_whole_sequences",
      layout_named("data2_tensor2_whole_sequences_expert4"),
      {"model.dense_ffn_dim=40", "model.tie_embeddings=false"});
  for (const char* exchange : {"gather", "ring", "all_to_all"}) {
    const std::vector<std::string> more = {std::string("parallel.context_exchange=") + exchange,
                                           "model.num_kv_heads=4"};
    const auto name = [&](const char* what) { return std::string(exchange) + "_" + what; };
    add(name("keys"), in_context(layout_named("data2_expert2"), 2), more);
    add(name("keys_of_heads"), in_context(layout_named("tensor2_expert2"), 2), more);
    for (const char* again : {"attention", "block"}) {
      add(name(again),
          in_context(layout_named("one"), 4, {std::string("memory.recompute=") + again}),
          more);
    }
  }
  // What tensor ranks exchange in chunks, of sequences and of parts of one.
  for (const char* micro_batch : {"1", "4"}) {
    const std::vector<std::string> more = {std::string("batch.micro_batch=") + micro_batch,
                                           "parallel.overlap_tensor=required",
                                           "model.dense_ffn_dim=40"};
    const auto name = [&](const char* what) { return std::string(what) + "_of_" + micro_batch; };
    add(name("chunks"), layout_named("tensor2_expert2"), more);
    add(name("whole_chunks"), layout_named("tensor2_whole_sequences"), more);
    add(name("chunks_again"),
        layout_named("tensor2"),
        {more[0], more[1], more[2], "memory.recompute=block", "memory.head_rows=40"});
    add(name("chunks_of_keys"), in_context(layout_named("tensor2"), 2), more);
    add(name("chunks_of_stages"),
        piped("", layout_named("tensor2"), 2, {"parallel.schedule=zb-h1"}),
        more);
  }
  const std::vector<std::pair<const char*, std::vector<std::string>>> schedules = {
      {"1f1b", {}},
      {"interleaved", {"parallel.chunks=2", "parallel.stages=[1,0,0,1]"}},
      {"zb-h1", {"model.dense_ffn_dim=40"}},
      {"zbv", {"parallel.stages=[0,1,1,0]", "memory.recompute=block"}},
  };
  for (const auto& [schedule, more] : schedules) {
    for (const char* base :
         {"one_small_batches", "data2_tensor2_expert4", "tensor4_shared_heads"}) {
      std::string name = std::string("pipeline2_") + schedule + "_" + base;
      std::replace(name.begin(), name.end(), '-', '_');
      std::vector<std::string> all = more;
      all.push_back(std::string("parallel.schedule=") + schedule);
      result.push_back(piped(name, layout_named(base), 2, all));
    }
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Layouts,
                         StepOperationsTest,
                         testing::ValuesIn(cases()),
                         [](const auto& tested) { return tested.param.name; });

// By rings: a rank hands on all pieces but one, and of a sum that all have each piece twice.
TEST(StepOperations, SendWhatTheirPatternMoves) {
  const auto sent = [](OperationKind kind, Pattern pattern) {
    return StepOperation{.kind = kind, .group = "tensor", .pattern = pattern, .bytes = 400}
        .sent_bytes(4);
  };
  EXPECT_EQ(sent(OperationKind::gather, Pattern::all_gather), 300);
  EXPECT_EQ(sent(OperationKind::reduce, Pattern::reduce_scatter), 300);
  EXPECT_EQ(sent(OperationKind::reduce, Pattern::all_reduce), 600);
  EXPECT_EQ(sent(OperationKind::exchange, Pattern::all_to_all), 300);
  EXPECT_EQ(sent(OperationKind::send, Pattern::broadcast), 400);
  EXPECT_EQ(sent(OperationKind::receive, Pattern::broadcast), 0);
}

// All FLOP of the model are somewhere, once, and with them those that are computed again.
TEST(StepOperations, HaveTheFlopOfTheModel) {
  Layout layout = layout_named("data2_tensor2_expert4");
  layout.overrides.push_back("memory.recompute=block");
  const TemporaryDirectory directory;
  const Config config = parse_config(tiny_yaml(directory),
                                     "tiny.yaml",
                                     run_overrides(layout, "f32"),
                                     Check::machine,
                                     layout.num_ranks);
  const Mesh mesh(config.parallel, layout.num_ranks);
  const DeviceRoom room{.budget_bytes = std::numeric_limits<std::size_t>::max()};
  double flops = 0;
  for (int rank = 0; rank < layout.num_ranks; ++rank) {
    for (const StepOperation& one :
         step_operations(config, DType::f32, plan_training(config, DType::f32, room, mesh, rank))) {
      flops += one.flops;
    }
  }
  const double tokens =
      static_cast<double>(config.batch.global_batch * config.batch.sequence_length);
  const Recompute block{.groups = {.block = true}, .num_layers = config.model.num_layers};
  const double expected =
      tokens *
      (model_flops_per_token(config.model, config.batch.sequence_length).halved +
       recompute_cost(config.model, config.batch.sequence_length, DType::f32, block).flops);
  EXPECT_NEAR(flops, expected, 1e-9 * expected);
}

}  // namespace
}  // namespace memphis::test
