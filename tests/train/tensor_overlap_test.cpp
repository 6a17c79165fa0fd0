// SPDX-License-Identifier: Apache-2.0
//
// What tensor ranks gather and sum beside their products changes nothing but when it travels:
//
//   the same bits    as the same layout without, of losses, gradients and weights
//   work beside      each exchange but the first and the last of a product that is alone: a product,
//                    between its start and its wait
//   memory           what the plan says, to the byte
#include <algorithm>
#include <cstdint>
#include <map>
#include <ostream>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/together.h"
#include "csrc/core/device.h"
#include "tests/support/layout_run.h"
#include "tests/support/overlap_run.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

constexpr const char* kRequired = "parallel.overlap_tensor=required";
constexpr const char* kNever = "parallel.overlap_tensor=never";
constexpr const char* kDense = "model.dense_ffn_dim=40";
constexpr const char* kWhole = "parallel.sequence_parallel=false";
// A micro-batch of one sequence is cut within it.
constexpr const char* kOne = "batch.micro_batch=1";

struct Case {
  Layout layout;
  std::string compute = "f32";
};

void PrintTo(const Case& tested, std::ostream* out) {
  *out << tested.layout.name << " in " << tested.compute;
}

std::vector<Case> cases() {
  std::vector<Case> result;
  const auto add = [&](const char* name, const Layout& layout, std::vector<std::string> more) {
    Layout named = with(layout, more);
    named.name = name;
    result.push_back({.layout = named});
  };
  const auto add_f64 = [&](const char* name, const Layout& layout, std::vector<std::string> more) {
    add(name, layout, std::move(more));
    result.back().compute = "f64";
  };
  const Layout tensor2 = layout("", 1, 2, 1, 1);
  const Layout tensor4 = layout("", 1, 4, 1, 1);
  const Layout tensor2_expert2 = layout("", 1, 2, 2, 1);
  add("tensor2", tensor2, {});
  add_f64("tensor2_in_f64", tensor2, {kDense});
  add("tensor2_dense", tensor2, {kDense});
  add("one_sequence", tensor2, {kOne, kDense});
  add_f64("one_sequence_in_f64", tensor2, {kOne, kDense});
  add("one_sequence_of_four_pieces", tensor4, {kOne, kDense, "batch.sequence_length=64"});
  add("chunks_that_differ", tensor2, {"batch.micro_batch=3", "batch.global_batch=6", kDense});
  add("whole_sequences", tensor2, {kWhole, kDense});
  add_f64("whole_sequences_in_f64", tensor2, {kWhole, kDense});
  add("one_whole_sequence", tensor2, {kWhole, kDense, kOne});
  add("whole_sequences_without_dense", tensor2, {kWhole});
  add("tensor4_shared_heads", tensor4, {});
  add("untied", tensor2, {"model.tie_embeddings=false", kDense});
  add("head_of_few_rows", tensor2, {"memory.head_rows=24"});
  add("head_of_a_sequence", tensor2, {"memory.head_rows=32", kDense});
  add("chunks_that_begin_between_rows_of_the_head",
      tensor2,
      {"batch.sequence_length=6", "batch.micro_batch=2"});
  add("experts", tensor2_expert2, {kDense});
  add("pairs",
      tensor2_expert2,
      {kDense, "parallel.overlap_experts=required", "batch.micro_batch=2"});
  add("pieces_of_experts", layout("", 2, 2, 2, 2), {});
  add("shared_weights", layout("", 2, 2, 2, 1), {"parallel.zero=3", kDense});
  for (const char* again : {"norm", "experts", "[attention, geglu]", "block"}) {
    add("again", tensor2, {std::string("memory.recompute=") + again, kDense});
    result.back().layout.name += "_" + std::to_string(result.size());
    add("one_sequence_again", tensor2, {std::string("memory.recompute=") + again, kDense, kOne});
    result.back().layout.name += "_" + std::to_string(result.size());
  }
  for (const char* exchange : {"gather", "ring", "all_to_all"}) {
    add(exchange,
        in_context(tensor2, 2),
        {std::string("parallel.context_exchange=") + exchange, "model.num_kv_heads=4", kDense});
  }
  const std::vector<std::pair<const char*, std::vector<std::string>>> schedules = {
      {"one_after_the_other", {}},
      {"interleaved", {"parallel.schedule=interleaved", "model.num_layers=4"}},
      {"weights_later", {"parallel.schedule=zb-h1"}},
      {"weights_later_again", {"parallel.schedule=zb-h1", "memory.recompute=block"}},
      {"weights_later_whole_sequences", {"parallel.schedule=zb-h1", kWhole}},
      {"zbv", {"parallel.schedule=zbv", "model.num_layers=4"}},
  };
  for (const auto& [name, more] : schedules) {
    std::vector<std::string> all = more;
    all.insert(all.end(), {kDense, "batch.micro_batch=2"});
    add(name, piped("", tensor2, 2, {}), all);
  }
  add("weights_later_one_sequence",
      piped("", tensor2, 2, {"parallel.schedule=zb-h1"}),
      {kDense, kOne});
  add("weights_later_without_dense", piped("", tensor2, 2, {"parallel.schedule=zb-h1"}), {kOne});
  add("bf16", tensor2, {kOne, kDense});
  result.back().compute = "bf16";
  return result;
}

class TensorOverlapTest : public testing::TestWithParam<Case> {};

TEST_P(TensorOverlapTest, HasTheSameBits) {
  const auto& [layout, compute] = GetParam();
  expect_same_bits_with(layout, compute, kRequired, kNever);
}

// Of the whole job, in host memory and, as the plan has it, on the device.
TEST_P(TensorOverlapTest, TakesTheMemoryThatThePlansSay) {
  const auto& [layout, compute] = GetParam();
  expect_memory_as_planned(with(layout, {kRequired}), compute, [](RankRun& run) {
    EXPECT_TRUE(run.trainer().plan().dims.tensor_chunks.overlap());
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts,
                         TensorOverlapTest,
                         testing::ValuesIn(cases()),
                         [](const auto& tested) { return tested.param.layout.name; });

// Calls of a step, by name: those that a product is beside, and those that are done at once.
struct Calls {
  std::map<std::string, int> beside;
  std::map<std::string, int> alone;
};

void expect_calls(const Layout& layout, const Calls& expected) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    WatchingWorld watching(world, "tensor");
    RankRun run(watching, yaml, run_overrides(layout, "f32"));
    run.trainer().step();
    watching.watch_step(run);
    const std::set<std::string> numbers = {"moe.balance", "head.cross_entropy", "step.z_loss"};
    std::map<std::string, int> begun;
    for (std::size_t i = 0; i < watching.begun.size(); ++i) {
      const Exchanged& one = watching.begun[i];
      if (numbers.contains(one.name)) {
        continue;
      }
      ++begun[one.name];
      EXPECT_GT(one.flops_at_wait, one.flops_at_start)
          << one.name << ", number " << i << ", rank " << world.rank();
    }
    std::map<std::string, int> done;
    for (const std::string& name : watching.done) {
      if (!numbers.contains(name)) {
        ++done[name];
      }
    }
    EXPECT_EQ(begun, expected.beside);
    EXPECT_EQ(done, expected.alone);
  });
}

constexpr const char* kGather = "tensor.whole_tokens";
constexpr const char* kSum = "tensor.sum_terms";
constexpr const char* kJoin = "tensor.join_routed";

// Two layers, one micro-batch in two chunks. A layer gathers before two products forward, and the
// gradients of two backward, of which the second chunk is beside the first; and two inputs as one, beside
// attention or a product. It sums what four make, of which two are the last of their branches' backward
// passes and have a product behind them. The head gathers two chunks and sums two; the embedding is alone.
TEST(TensorOverlap, HasAProductBesideEachExchangeButTheFirstAndTheLast) {
  constexpr int kLayers = 2;
  expect_calls(with(layout("", 1, 2, 1, 1), {"batch.micro_batch=16", kDense, kRequired}),
               {.beside = {{kGather, kLayers * (2 + 2 + 2) + 1}, {kSum, kLayers * (2 + 2) + 2}},
                .alone = {{kGather, kLayers * (2 + 2) + 2}, {kSum, kLayers * 2 + 1}}});
}

TEST(TensorOverlap, OfWholeSequencesHasThemBesideSumsAndJoinedParts) {
  constexpr int kLayers = 2;
  expect_calls(with(layout("", 1, 2, 1, 1), {"batch.micro_batch=16", kDense, kWhole, kRequired}),
               {.beside = {{kSum, kLayers * (2 + 2) + 2}, {kJoin, kLayers * 2}},
                .alone = {{kSum, kLayers * 2 + 1}}});
}

// Of what is gathered for weights apart nothing is alone: experts, or the product before, are beside it.
// The first stage, which nobody waits for, forms its weights' gradients with the others.
TEST(TensorOverlap, OfWeightsApartHasOneBesideEachGather) {
  constexpr int kMicroBatches = 4;
  const Layout layout = with(piped("", memphis::test::layout("", 1, 2, 1, 1), 2, {}),
                             {"parallel.schedule=zb-h1", "batch.micro_batch=4", kDense, kRequired});
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    WatchingWorld watching(world, "tensor");
    RankRun run(watching, yaml, run_overrides(layout, "f32"));
    run.trainer().step();
    watching.watch_step(run);
    std::map<std::string, int> begun;
    for (const Exchanged& one : watching.begun) {
      ++begun[one.name];
      EXPECT_GT(one.flops_at_wait, one.flops_at_start) << one.name << ", rank " << world.rank();
    }
    const bool head = run.trainer().plan().activations.chunks.front().stage.head;
    EXPECT_EQ(begun[kGather], kMicroBatches * (2 + 2 + (head ? 4 + 1 : 2)));
    EXPECT_EQ(begun[kSum], kMicroBatches * (2 + 2 + (head ? 2 : 0)));
  });
}

TEST(TensorOverlap, NeverHasNoExchangeUnderWay) {
  expect_calls(with(layout("", 1, 2, 1, 1), {"batch.micro_batch=16", kNever}),
               {.beside = {}, .alone = {{kGather, 2 * 3 + 2}, {kSum, 2 * 2 + 2}}});
}

}  // namespace
}  // namespace memphis::test
