// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/stage_costs.h"

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/presets.h"
#include "csrc/plan/flops.h"
#include "csrc/plan/schedule_messages.h"

namespace memphis {
namespace {

constexpr double kRounding = 1e-12;

BatchConfig batch_of(std::int64_t micro_batch, std::int64_t sequence_length) {
  return {.sequence_length = sequence_length, .micro_batch = micro_batch};
}

double sum_of(const MicroBatchFlops& flops) {
  double sum = flops.embedding.total() + flops.head.total();
  for (const PassFlops& layer : flops.layers) {
    sum += layer.total();
  }
  return sum;
}

std::vector<std::int64_t> counts_of(const StageLayout& layout) {
  std::vector<std::int64_t> counts;
  for (const StageLayers& stage : layout) {
    counts.push_back(stage.layers.count);
  }
  return counts;
}

void expect_near(double value, double expected) {
  EXPECT_NEAR(value, expected, kRounding * expected);
}

TEST(StageCosts, AddUpToTheFlopOfTheModel) {
  for (const char* name : {"grok-1", "grok-2"}) {
    const ModelConfig model = preset(name);
    for (const BatchConfig& batch : {batch_of(1, 8192), batch_of(3, 512)}) {
      const auto tokens = static_cast<double>(batch.micro_batch * batch.sequence_length);
      expect_near(sum_of(micro_batch_flops(model, batch, DType::bf16)),
                  tokens * model_flops_per_token(model, batch.sequence_length).halved);
    }
  }
}

// Counted by hand: 2 FLOP for each weight that a token meets, and two products of 6144 x 8192 / 2.
TEST(StageCosts, AreThoseOfThePassesOfGrok1) {
  const MicroBatchFlops flops = micro_batch_flops(preset("grok-1"), batch_of(1, 8192), DType::bf16);
  const double weights = 2.0 * 6144 * (2 * 6144 + 2 * 1024 + 2 * 3 * 32768 + 8);
  const double scores = 2.0 * 6144 * 8192;
  ASSERT_EQ(flops.layers.size(), 64U);
  expect_near(flops.layers.front().forward, 8192 * (weights + scores));
  expect_near(flops.layers.front().backward_inputs, 8192 * (weights + 2 * scores));
  expect_near(flops.layers.front().backward_weights, 8192 * weights);
  EXPECT_EQ(flops.embedding.total(), 0);
  EXPECT_EQ(flops.head.forward, 0);
  EXPECT_EQ(flops.head.backward_weights, 0);
  expect_near(flops.head.backward_inputs, 8192 * 6.0 * 131072 * 6144);
  // Three fifths of a layer.
  EXPECT_NEAR(flops.head.total() / flops.layers.front().total(), 0.598, 0.0005);
}

// In the pass of inputs, of the layers that do so.
TEST(StageCosts, HaveWhatIsComputedAgain) {
  const ModelConfig model = preset("grok-1");
  const BatchConfig batch = batch_of(2, 1024);
  const Recompute recompute{
      .groups = {.attention = true, .experts = true}, .num_layers = 5, .rest = {.attention = true}};
  const MicroBatchFlops kept = micro_batch_flops(model, batch, DType::bf16);
  const MicroBatchFlops again = micro_batch_flops(model, batch, DType::bf16, recompute);
  expect_near(sum_of(again) - sum_of(kept),
              2048 * recompute_cost(model, 1024, DType::bf16, recompute).flops);
  EXPECT_EQ(again.layers[4].forward, kept.layers[4].forward);
  EXPECT_EQ(again.layers[4].backward_weights, kept.layers[4].backward_weights);
  EXPECT_GT(again.layers[4].backward_inputs, again.layers[5].backward_inputs);
  EXPECT_GT(again.layers[5].backward_inputs, kept.layers[5].backward_inputs);
}

TEST(StageCosts, AreTheSumsOfWhatStagesHold) {
  const MicroBatchFlops flops{.layers = {{1, 2, 3}, {10, 20, 30}, {100, 200, 300}},
                              .embedding = {.5, 0, 7},
                              .head = {0, 9, 0}};
  const LayerCosts costs = layer_costs(flops);
  EXPECT_EQ(costs.layers, (std::vector<double>{6, 60, 600}));
  EXPECT_EQ(costs.embedding, 7.5);
  EXPECT_EQ(costs.head, 9);
  const PipelineCosts stages = pipeline_costs(stages_of_counts(3, {2, 0, 1}), flops);
  EXPECT_EQ(stages.stages,
            (std::vector<StageCost>{{11.5, 22, 40, 2}, {0, 0, 0, 0}, {100, 209, 300, 1}}));
  EXPECT_EQ(stages.message.transfer(), 0);
  EXPECT_EQ(evened({.stages = {{1, 2, 3, 4}, {3, 6, 1, 0}}, .message = {}}).stages,
            (std::vector<StageCost>{{2, 4, 2, 2}, {2, 4, 2, 2}}));
}

// 1F1B of two ranks: the first pass of rank 0 and the last are what rank 1 waits for, and rank 0
// waits while rank 1 does its own.
TEST(StageCosts, PriceALayout) {
  const MicroBatchFlops flops{
      .layers = std::vector<PassFlops>(4, {1, 1, 1}), .embedding = {}, .head = {0, 3, 0}};
  const PipelineSchedule schedule = make_schedule({.num_ranks = 2, .num_micro_batches = 10});
  const LayoutPrice even = price(stages_of_counts(4, {2, 2}), flops, schedule);
  EXPECT_DOUBLE_EQ(even.imbalance, 9 / 7.5);
  EXPECT_DOUBLE_EQ(even.makespan, 2 + 10 * 9 + 4);
  EXPECT_DOUBLE_EQ(even.bubble_share, 1 - 150 / (2 * even.makespan));
  const LayoutPrice first = price(stages_of_counts(4, {3, 1}), flops, schedule);
  EXPECT_DOUBLE_EQ(first.imbalance, 9 / 7.5);
}

TEST(StageCosts, FindALayoutThatTakesLessTime) {
  const MicroBatchFlops flops{
      .layers = std::vector<PassFlops>(9, {1, 1, 1}), .embedding = {}, .head = {0, 9, 0}};
  const PipelineSchedule schedule = make_schedule({.num_ranks = 2, .num_micro_batches = 4});
  const StageLayout even = even_stages(9, 2);
  const std::optional<StageLayout> better = better_layout(even, flops, schedule);
  ASSERT_TRUE(better.has_value());
  EXPECT_EQ(counts_of(*better), (std::vector<std::int64_t>{6, 3}));
  EXPECT_LT(price(*better, flops, schedule).makespan, price(even, flops, schedule).makespan);
  EXPECT_FALSE(better_layout(*better, flops, schedule).has_value());
}

// What is offered is never worse, and nothing is offered a second time.
TEST(StageCosts, OfferOnlyWhatIsBetter) {
  for (const double head : {0.0, 0.6, 2.5}) {
    const MicroBatchFlops flops{.layers = std::vector<PassFlops>(13, {1, 1.1, 0.9}),
                                .embedding = {},
                                .head = {0, 3 * head, 0}};
    for (const ScheduleRule& rule : kScheduleRules) {
      const PipelineSchedule schedule = make_schedule({.kind = rule.kind,
                                                       .num_ranks = 3,
                                                       .num_chunks = rule.num_chunks,
                                                       .num_micro_batches = 7});
      const StageLayout even = even_stages(13, schedule.shape.num_stages());
      const std::optional<StageLayout> better = better_layout(even, flops, schedule);
      if (better) {
        EXPECT_NO_THROW(require_complete(*better, 13, schedule.shape.num_stages()));
        EXPECT_LT(price(*better, flops, schedule).makespan, price(even, flops, schedule).makespan)
            << rule.name << " " << head;
        EXPECT_FALSE(better_layout(*better, flops, schedule).has_value())
            << rule.name << " " << head;
      }
    }
  }
}

}  // namespace
}  // namespace memphis
