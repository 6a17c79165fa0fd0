// SPDX-License-Identifier: Apache-2.0
//
// Rows that travel to experts and back while another micro-batch is at work change nothing but when
// which work is done:
//
//   the same bits    as the same layout without, of losses, gradients and weights
//   work beside      each exchange of a pair of passes: products of the other pass, between its
//                    start and its wait
//   memory           what the plan says, to the byte
//   the choice       auto takes it where it has room, before anything is computed again for it
#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <ostream>
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

constexpr const char* kRequired = "parallel.overlap_experts=required";
constexpr const char* kNever = "parallel.overlap_experts=never";

struct Case {
  Layout layout;
  std::string compute = "f32";
};

void PrintTo(const Case& tested, std::ostream* out) {
  *out << tested.layout.name;
}

// A step is 16 sequences, and there are three layers, or four in stages.
std::vector<Case> cases() {
  std::vector<Case> result;
  const auto add = [&](Layout layout, const std::vector<std::string>& more) {
    layout = with(layout, more);
    for (const std::string_view by_default :
         {"model.num_layers=3", "batch.micro_batch=2", "optimizer.clip_norm=0.5"}) {
      const std::string_view key = by_default.substr(0, by_default.find('=') + 1);
      if (std::none_of(layout.overrides.begin(), layout.overrides.end(), [&](const auto& each) {
            return each.starts_with(key);
          })) {
        layout.overrides.emplace_back(by_default);
      }
    }
    result.push_back({.layout = layout});
  };
  add(layout("expert2", 2, 1, 2, 1), {});
  add(layout("expert2_untied_whole_optimizer", 2, 1, 2, 1),
      {"model.tie_embeddings=false", "parallel.zero=0"});
  add(layout("expert4", 4, 1, 4, 1), {});
  add(layout("split_expert", 2, 1, 1, 2), {});
  add(layout("expert2_split2_micro_batches_of_one", 4, 1, 2, 2), {"batch.micro_batch=1"});
  add(layout("shared_gradients", 4, 1, 2, 1), {"parallel.zero=2", "parallel.bucket_mib=0"});
  add(layout("tensor2_expert4", 2, 2, 4, 1), {"model.dense_ffn_dim=40"});
  add(layout("tensor2_whole_sequences", 1, 2, 2, 1),
      {"parallel.sequence_parallel=false", "model.dense_ffn_dim=40"});
  add(layout("room_for_twice_the_share", 2, 1, 2, 1), {"parallel.expert_buffer=2"});
  for (const char* again : {"norm", "experts", "[attention, geglu]", "block"}) {
    add(layout("again", 2, 1, 2, 1),
        {std::string("memory.recompute=") + again, "model.dense_ffn_dim=40"});
    result.back().layout.name += "_" + std::to_string(result.size());
  }
  add(layout("again_in_two_layers", 2, 1, 2, 1),
      {"memory.recompute=block", "memory.recompute_layers=2"});
  const std::vector<std::pair<const char*, std::vector<std::string>>> schedules = {
      {"1f1b", {}},
      {"interleaved", {"parallel.schedule=interleaved", "parallel.stages=[1,1,0,2]"}},
      {"zb_h1", {"parallel.schedule=zb-h1"}},
  };
  for (const auto& [name, more] : schedules) {
    for (const char* again : {"none", "block"}) {
      std::vector<std::string> all = more;
      all.insert(
          all.end(),
          {"model.num_layers=4", "batch.micro_batch=1", std::string("memory.recompute=") + again});
      const std::string full = std::string("pipeline2_") + name + (again[0] == 'b' ? "_again" : "");
      add(piped(full, layout("", 2, 1, 2, 1), 2, {}), all);
    }
  }
  add(piped("pipeline2_expert4", layout("", 4, 1, 4, 1), 2, {}), {"model.num_layers=4"});
  add(layout("chunks_of_one_rank", 2, 1, 2, 1),
      {"parallel.schedule=interleaved", "model.num_layers=4"});
  for (const char* exchange : {"ring", "gather"}) {
    add(in_context(layout(exchange, 2, 1, 2, 1), 2, {}),
        {std::string("parallel.context_exchange=") + exchange, "memory.recompute=block"});
  }
  add(layout("bf16", 2, 1, 2, 1), {"memory.recompute=experts"});
  result.back().compute = "bf16";
  return result;
}

class ExpertOverlapTest : public testing::TestWithParam<Case> {};

TEST_P(ExpertOverlapTest, HasTheSameBits) {
  const auto& [layout, compute] = GetParam();
  expect_same_bits_with(layout, compute, kRequired, kNever);
}

// Of the whole job, in host memory and, as the plan has it, on the device.
TEST_P(ExpertOverlapTest, TakesTheMemoryThatThePlansSay) {
  const auto& [layout, compute] = GetParam();
  expect_memory_as_planned(with(layout, {kRequired}), compute, [](RankRun& run) {
    EXPECT_TRUE(run.trainer().plan().overlaps_experts);
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts,
                         ExpertOverlapTest,
                         testing::ValuesIn(cases()),
                         [](const auto& tested) { return tested.param.layout.name; });

class WorkBesideTest : public testing::TestWithParam<const char*> {};

// Of eight micro-batches seven pairs: the first forward and the last backward pass are alone.
TEST_P(WorkBesideTest, IsOfTheOtherPass) {
  constexpr std::int64_t kLayers = 3;
  constexpr std::int64_t kPairs = 7;
  const std::string again = GetParam();
  const Layout layout =
      with(layout_named("data2_expert2"),
           {"model.num_layers=3", "batch.micro_batch=1", kRequired, "memory.recompute=" + again});
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    WatchingWorld watching(world, "expert_ranks");
    RankRun run(watching, yaml, run_overrides(layout, "f32"));
    run.trainer().step();
    watching.watch_step(run);
    std::map<std::string, std::int64_t> begun;
    for (const Exchanged& one : watching.begun) {
      ++begun[one.name];
      EXPECT_GT(one.flops_at_wait, one.flops_at_start)
          << one.name << " of micro-batch " << one.started_in << ", rank " << world.rank();
    }
    const std::int64_t dispatches = again == "block" ? 2 : 1;
    const std::map<std::string, std::int64_t> expected = {
        {"moe.dispatch", kPairs * kLayers * dispatches},
        {"moe.gates", kPairs * kLayers},
        {"moe.combine", kPairs * kLayers},
        {"moe.dcombine", kPairs * kLayers},
        {"moe.ddispatch", kPairs * kLayers},
        {"moe.dgates", kPairs * kLayers}};
    EXPECT_EQ(begun, expected);
    std::erase(watching.done, "moe.counts");  // which have no rows
    EXPECT_EQ(watching.done.size(), static_cast<std::size_t>((5 + dispatches) * kLayers))
        << "alone: one forward and one backward pass";
    // A pass says whose it is: of a pair the backward pass has the micro-batch before.
    EXPECT_EQ(watching.begun[0].started_in, 0);
    const auto gates = std::find_if(watching.begun.begin(),
                                    watching.begun.end(),
                                    [](const auto& one) { return one.name == "moe.gates"; });
    EXPECT_EQ(gates->started_in, 1);
  });
}

INSTANTIATE_TEST_SUITE_P(Recompute,
                         WorkBesideTest,
                         testing::Values("none", "norm", "block"),
                         [](const auto& tested) { return std::string(tested.param); });

// Without pairs nothing is left to compute.
TEST(ExpertOverlap, NeverHasNoExchangeUnderWay) {
  const Layout layout = with(layout_named("data2_expert2"), {"batch.micro_batch=1", kNever});
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    WatchingWorld watching(world, "expert_ranks");
    RankRun run(watching, yaml, run_overrides(layout, "f32"));
    run.trainer().step();
    EXPECT_TRUE(watching.begun.empty());
    EXPECT_FALSE(watching.done.empty());
    EXPECT_FALSE(run.trainer().plan().overlaps_experts);
  });
}

// A rank that computes its gradients again does a pair's passes one by one, and to the same bits.
TEST(ExpertOverlap, RepeatsItsGradients) {
  const Layout layout =
      with(layout_named("data2_expert2"), {"batch.micro_batch=1", "model.num_layers=3", kRequired});
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    RankRun run(world, yaml, run_overrides(layout, "f32"));
    run.trainer().step();
    EXPECT_NO_THROW(run.trainer().check_repeats());
    run.trainer().step();
  });
}

}  // namespace
}  // namespace memphis::test
