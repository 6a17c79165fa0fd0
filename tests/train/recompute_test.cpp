// SPDX-License-Identifier: Apache-2.0
//
// What the backward pass computes again it has with the bits that it would have found kept: weights,
// optimizer state and losses of a run do not depend on memory.recompute, in any layout.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/device.h"
#include "csrc/core/error.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

struct Trained {
  Tensors state;
  std::vector<double> losses;
  double validation = 0;
  std::size_t activations_bytes = 0;
};

Trained run_of(Layout layout,
               const std::string& compute,
               int num_steps,
               const std::string& recompute) {
  layout.overrides.push_back("memory.recompute=" + recompute);
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  Trained run;
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    RankRun rank(world, yaml, run_overrides(layout, compute));
    Trained own;
    for (int step = 0; step < num_steps; ++step) {
      own.losses.push_back(rank.same_on_all(rank.trainer().step().loss));
    }
    own.state = compute == "bf16" ? rank.weights() : rank.state();
    own.validation = rank.trainer().validation_loss();
    own.activations_bytes = rank.trainer().plan().memory.activations_bytes;
    if (keeps_result(Ranks::threads, world)) {
      run = std::move(own);
    }
  });
  return run;
}

void expect_same_run(const Layout& layout,
                     const std::string& compute,
                     int num_steps,
                     const std::vector<std::string>& choices) {
  const Trained kept = run_of(layout, compute, num_steps, "none");
  for (const std::string& recompute : choices) {
    SCOPED_TRACE(recompute);
    const Trained again = run_of(layout, compute, num_steps, recompute);
    expect_same_bits(again.state, kept.state, "what the optimizer leaves");
    EXPECT_EQ(again.losses, kept.losses);
    EXPECT_EQ(again.validation, kept.validation);
    EXPECT_LT(again.activations_bytes, kept.activations_bytes);
  }
}

const std::vector<std::string> kChoices = {
    "norm", "attention", "experts", "geglu", "[norm, attention, experts, geglu]", "block"};

class RecomputeLayouts : public testing::TestWithParam<Layout> {};

TEST_P(RecomputeLayouts, HaveTheSameBits) {
  expect_same_run(GetParam(), "f32", 3, kChoices);
}

INSTANTIATE_TEST_SUITE_P(
    All,
    RecomputeLayouts,
    testing::Values(
        layout("one", 1, 1, 1, 1, {"model.num_layers=3", "batch.micro_batch=2"}),
        layout("dense", 1, 1, 1, 1, {"model.dense_ffn_dim=40", "model.router_cap=5"}),
        layout("padding_and_temperature",
               1,
               1,
               1,
               1,
               {"model.pad_id=114", "model.attention_temperature_len=8"}),
        layout("data2_shared_gradients", 2, 1, 2, 1, {"parallel.zero=2", "batch.micro_batch=2"}),
        layout("tensor2_whole_sequences",
               1,
               2,
               2,
               1,
               {"parallel.sequence_parallel=false", "model.dense_ffn_dim=40"}),
        layout("data2_tensor2_expert2_split2", 2, 2, 2, 2, {"model.dense_ffn_dim=40"})),
    [](const auto& tested) { return tested.param.name; });

TEST(Recompute, OfTheFirstLayersHasTheSameBits) {
  const Layout three = layout("three", 1, 1, 1, 1, {"model.num_layers=3"});
  Layout first = three;
  first.overrides.push_back("memory.recompute_layers=2");
  const Trained kept = run_of(three, "f64", 3, "none");
  for (const std::string recompute : {"[norm, geglu]", "block"}) {
    const Trained again = run_of(first, "f64", 3, recompute);
    expect_same_bits(again.state, kept.state, "what the optimizer leaves");
    EXPECT_LT(run_of(three, "f64", 1, recompute).activations_bytes, again.activations_bytes);
    EXPECT_LT(again.activations_bytes, kept.activations_bytes);
  }
}

TEST(Recompute, OnADeviceHasTheSameBits) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  expect_same_run(layout("device",
                         1,
                         1,
                         1,
                         1,
                         {"run.device=cuda",
                          "model.vocab_size=264",
                          "batch.sequence_length=16",
                          "batch.global_batch=4",
                          "metrics.validate_batches=1"}),
                  "bf16",
                  1,
                  {"[norm, attention, experts, geglu]"});
}

// Between what all kept would take and what is kept of whole blocks there is room for something.
TEST(Recompute, IsChosenByWhatThereIsRoomFor) {
  const Layout two = layout("two", 2, 1, 1, 1);
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  const auto plan_with = [&](const std::vector<std::string>& more) {
    std::vector<std::string> overrides = run_overrides(two, "f32");
    overrides.insert(overrides.end(), more.begin(), more.end());
    TrainingPlan plan;
    on_ranks(Ranks::threads, 2, [&](World& world) {
      RankRun rank(world, yaml, overrides);
      rank.trainer().step();
      const auto option = static_cast<double>(rank.trainer().plan().recompute_option);
      EXPECT_EQ(rank.same_on_all(option), option);
      if (world.rank() == 0) {
        plan = rank.trainer().plan();
      }
    });
    return plan;
  };
  const TrainingPlan all = plan_with({"memory.recompute=none"});
  const TrainingPlan least = plan_with({"memory.recompute=block"});
  EXPECT_FALSE(plan_with({}).activations.recompute.any()) << "where there is room for all";

  const double middle =
      0.5 * static_cast<double>(all.memory.total_bytes() + least.memory.total_bytes());
  const std::string budget =
      "memory.budget_gib=" + std::to_string(middle / (1024.0 * 1024.0 * 1024.0));
  const TrainingPlan chosen = plan_with({budget});
  EXPECT_TRUE(chosen.activations.recompute.any());
  EXPECT_LE(static_cast<double>(chosen.memory.total_bytes()), middle);
}

// What was asked for is not exchanged for something else.
TEST(Recompute, IsNotChosenWhereItIsNotWanted) {
  const TemporaryDirectory directory;
  const auto trains = [&](const std::string& recompute) {
    const Trainer trainer(
        tiny_config(directory, {"memory.budget_gib=0.0017", "memory.recompute=" + recompute}), {});
    return trainer.plan().activations.recompute.any();
  };
  EXPECT_TRUE(trains("auto"));
  EXPECT_THROW(trains("none"), PreflightError);
}

}  // namespace
}  // namespace memphis::test
