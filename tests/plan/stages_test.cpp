// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/stages.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

std::vector<std::int64_t> counts_of(const StageLayout& layout) {
  std::vector<std::int64_t> result;
  for (const StageLayers& stage : layout) {
    result.push_back(stage.layers.count);
  }
  return result;
}

using Counts = std::vector<std::int64_t>;

TEST(Stages, HaveAsManyLayersEach) {
  EXPECT_EQ(counts_of(even_stages(64, 8)), Counts(8, 8));
  EXPECT_EQ(counts_of(even_stages(30, 4)), (Counts{8, 8, 7, 7})) << "the last has the head too";
  EXPECT_EQ(even_stages(3, 1), (StageLayout{{.layers = {0, 3}, .embedding = true, .head = true}}));
  EXPECT_EQ(even_stages(3, 3),
            (StageLayout{{.layers = {0, 1}, .embedding = true},
                         {.layers = {1, 1}},
                         {.layers = {2, 1}, .head = true}}));
  for (std::int64_t num_layers = 1; num_layers <= 20; ++num_layers) {
    for (std::int64_t num_stages = 1; num_stages <= num_layers; ++num_stages) {
      EXPECT_NO_THROW(
          require_complete(even_stages(num_layers, num_stages), num_layers, num_stages));
    }
  }
}

TEST(Stages, SayWhatTheyHold) {
  const StageLayout layout = stages_of_counts(4, {3, 1, 0, 0});
  EXPECT_EQ(describe(layout[0]), "embedding, layers 0 to 2");
  EXPECT_EQ(describe(layout[1]), "layer 3");
  EXPECT_EQ(describe(layout[2]), "nothing");
  EXPECT_EQ(describe(layout[3]), "head");
}

TEST(Stages, AreUnevenWhereAsked) {
  EXPECT_EQ(counts_of(stages_of_counts(12, {5, 4, 0, 3})), (Counts{5, 4, 0, 3}));
  const StageLayout written = {{.layers = {0, 5}, .embedding = true},
                               {.layers = {5, 4}},
                               {},
                               {.layers = {9, 3}, .head = true}};
  EXPECT_NO_THROW(require_complete(written, 12, 4));
}

std::string refusal(const StageLayout& layout, std::int64_t num_layers, std::int64_t num_stages) {
  try {
    require_complete(layout, num_layers, num_stages);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(Stages, RefuseLayersThatAreMissingOrDoubled) {
  EXPECT_EQ(refusal({{.layers = {0, 3}, .embedding = true},
                     {.layers = {2, 2}},
                     {.layers = {6, 2}},
                     {.layers = {9, 1}, .head = true}},
                    10,
                    4),
            "parallel.stages is not the model: layers 4 to 5, 8 in no stage; layer 2 in more than "
            "one (stages follow the order of the model, the embedding is in the first and the head "
            "in the last); write each of the 10 layers once");
  EXPECT_NE(refusal({{.layers = {0, 9}, .embedding = true, .head = true}}, 8, 1)
                .find("stage 0 has layers 0 up to 9, and the model has 8 layers"),
            std::string::npos);
  EXPECT_NE(refusal({{.layers = {4, 4}, .embedding = true}, {.layers = {0, 4}, .head = true}}, 8, 2)
                .find("stage 0 with embedding, layers 4 to 7 comes where layer 0 is due"),
            std::string::npos);
  EXPECT_EQ(refusal({{.layers = {0, 8}, .embedding = true, .head = true}}, 8, 2),
            "parallel.stages has 1 stages (there are 2, ranks times chunks); write one entry for "
            "each");
  EXPECT_NE(refusal({}, 8, 0), "");
  EXPECT_NE(refusal({{.layers = {-1, 9}, .embedding = true, .head = true}}, 8, 1), "");
  EXPECT_NE(
      refusal({{.layers = {3, -1}, .embedding = true}, {.layers = {0, 8}, .head = true}}, 8, 2),
      "");
}

TEST(Stages, RefuseAnEmbeddingOrAHeadInAnotherPlace) {
  EXPECT_NE(refusal({{.layers = {0, 4}}, {.layers = {4, 4}, .embedding = true, .head = true}}, 8, 2)
                .find("stage 0 is without the embedding; stage 1 has the embedding"),
            std::string::npos);
  EXPECT_NE(refusal({{.layers = {0, 4}, .embedding = true, .head = true}, {.layers = {4, 4}}}, 8, 2)
                .find("stage 0 has the head; stage 1 is without the head"),
            std::string::npos);
}

TEST(Stages, RefuseCountsThatAreNotTheModel) {
  const auto refused = [](const Counts& counts) {
    try {
      stages_of_counts(64, counts);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(refused({30, 32}).find("layers 62 to 63 in no stage"), std::string::npos);
  EXPECT_NE(refused({30, 36}).find("stage 1 has layers 30 up to 66, and the model has 64 layers"),
            std::string::npos);
  EXPECT_EQ(refused({65, -1}),
            "parallel.stages gives stage 0 65 layers (the model has 64); use 0 to 64");
  EXPECT_NE(refused({64, -1}), "");
  EXPECT_NE(refused({}), "");
  EXPECT_EQ(refused({32, 32}), "");
  try {
    even_stages(6, 8);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "6 layers do not fill 8 pipeline stages (each has one at least unless "
                 "parallel.stages says otherwise); use 6 stages or less, ranks times chunks, or "
                 "write parallel.stages");
  }
}

double largest(const std::vector<double>& values) {
  return *std::max_element(values.begin(), values.end());
}

double largest_stage(const StageLayout& layout, const LayerCosts& costs) {
  double result = 0;
  for (const StageLayers& stage : layout) {
    result = std::max(result, cost_of(stage, costs));
  }
  return result;
}

// All ways to cut the layers.
void for_each_cut(std::int64_t num_layers,
                  std::size_t num_stages,
                  const std::function<void(const StageLayout&)>& visit) {
  Counts counts(num_stages, 0);
  const std::function<void(std::size_t, std::int64_t)> deal = [&](std::size_t stage,
                                                                  std::int64_t left) {
    if (stage + 1 == num_stages) {
      counts[stage] = left;
      visit(stages_of_counts(num_layers, counts));
      return;
    }
    for (counts[stage] = 0; counts[stage] <= left; ++counts[stage]) {
      deal(stage + 1, left - counts[stage]);
    }
  };
  deal(0, num_layers);
}

LayerCosts random_costs(std::mt19937& random, std::size_t num_layers, bool all_alike) {
  std::uniform_int_distribution<int> eighths(1, 24);
  LayerCosts costs;
  costs.layers.assign(num_layers, eighths(random) / 8.0);
  for (double& layer : costs.layers) {
    layer = all_alike ? costs.layers.front() : eighths(random) / 8.0;
  }
  costs.embedding = eighths(random) / 16.0;
  costs.head = eighths(random) / 8.0;
  return costs;
}

TEST(Stages, BalanceAsBruteForceDoes) {
  std::mt19937 random(7);
  for (int round = 0; round < 60; ++round) {
    const auto num_layers = static_cast<std::size_t>(1 + round % 8);
    const std::size_t num_stages = 1 + random() % 5;
    const LayerCosts costs = random_costs(random, num_layers, round % 3 == 0);
    const StageLayout balanced = balance_stages(costs, static_cast<std::int64_t>(num_stages));
    require_complete(
        balanced, static_cast<std::int64_t>(num_layers), static_cast<std::int64_t>(num_stages));
    double least = std::numeric_limits<double>::infinity();
    double squares = std::numeric_limits<double>::infinity();
    const auto squares_of = [&](const StageLayout& layout) {
      double sum = 0;
      for (const StageLayers& stage : layout) {
        sum += cost_of(stage, costs) * cost_of(stage, costs);
      }
      return sum;
    };
    for_each_cut(static_cast<std::int64_t>(num_layers), num_stages, [&](const StageLayout& layout) {
      const double largest = largest_stage(layout, costs);
      if (largest < least) {
        least = largest;
        squares = std::numeric_limits<double>::infinity();
      }
      if (largest == least) {
        squares = std::min(squares, squares_of(layout));
      }
    });
    EXPECT_DOUBLE_EQ(largest_stage(balanced, costs), least) << round;
    EXPECT_DOUBLE_EQ(squares_of(balanced), squares) << round;
  }
}

struct Pipeline {
  StagePlacement placement;
  std::int64_t num_ranks;
  std::int64_t num_chunks;
};

constexpr Pipeline kPipelines[] = {{StagePlacement::loop, 1, 3},
                                   {StagePlacement::loop, 2, 1},
                                   {StagePlacement::loop, 2, 2},
                                   {StagePlacement::loop, 3, 2},
                                   {StagePlacement::v, 2, 2},
                                   {StagePlacement::v, 3, 2}};

TEST(Stages, BalanceRanksAsBruteForceDoesWhereLayersCostTheSame) {
  std::mt19937 random(11);
  for (int round = 0; round < 24; ++round) {
    const Pipeline& pipeline = kPipelines[round % std::size(kPipelines)];
    const auto num_layers = static_cast<std::size_t>(1 + random() % 8);
    const std::int64_t num_stages = pipeline.num_ranks * pipeline.num_chunks;
    const LayerCosts costs = random_costs(random, num_layers, true);
    const auto largest_rank = [&](const StageLayout& layout) {
      return largest(rank_costs(layout, costs, pipeline.placement, pipeline.num_ranks));
    };
    const StageLayout balanced =
        balance_ranks(costs, pipeline.placement, pipeline.num_ranks, pipeline.num_chunks);
    require_complete(balanced, static_cast<std::int64_t>(num_layers), num_stages);
    double least = std::numeric_limits<double>::infinity();
    for_each_cut(static_cast<std::int64_t>(num_layers),
                 static_cast<std::size_t>(num_stages),
                 [&](const StageLayout& layout) { least = std::min(least, largest_rank(layout)); });
    EXPECT_DOUBLE_EQ(largest_rank(balanced), least) << round;
  }
}

// No layer that moves betters it, it is as good as the best stages, and few layouts are better.
TEST(Stages, BalanceRanksOfUnequalLayers) {
  std::mt19937 random(13);
  for (int round = 0; round < 24; ++round) {
    const Pipeline& pipeline = kPipelines[round % std::size(kPipelines)];
    const auto num_layers = static_cast<std::size_t>(2 + random() % 7);
    const std::int64_t num_stages = pipeline.num_ranks * pipeline.num_chunks;
    const LayerCosts costs = random_costs(random, num_layers, false);
    const auto largest_rank = [&](const StageLayout& layout) {
      return largest(rank_costs(layout, costs, pipeline.placement, pipeline.num_ranks));
    };
    const StageLayout balanced =
        balance_ranks(costs, pipeline.placement, pipeline.num_ranks, pipeline.num_chunks);
    EXPECT_LE(largest_rank(balanced), largest_rank(balance_stages(costs, num_stages)) + 1e-9);
    double least = std::numeric_limits<double>::infinity();
    for_each_cut(static_cast<std::int64_t>(num_layers),
                 static_cast<std::size_t>(num_stages),
                 [&](const StageLayout& layout) { least = std::min(least, largest_rank(layout)); });
    EXPECT_LE(largest_rank(balanced), 1.02 * least) << round;
    const Counts counts = counts_of(balanced);
    for (std::size_t from = 0; from < counts.size(); ++from) {
      for (std::size_t to = 0; counts[from] > 0 && to < counts.size(); ++to) {
        Counts moved = counts;
        --moved[from];
        ++moved[to];
        EXPECT_LE(
            largest_rank(balanced),
            largest_rank(stages_of_counts(static_cast<std::int64_t>(num_layers), moved)) + 1e-9)
            << round;
      }
    }
  }
}

TEST(Stages, AreThoseOfTheConfig) {
  ModelConfig model;
  model.num_layers = 6;
  EXPECT_EQ(stage_layout(model, {}), even_stages(6, 1));
  EXPECT_EQ(stage_layout(model, {.pipeline = 4}), even_stages(6, 4));
  EXPECT_EQ(stage_layout(model, {.pipeline = 2, .schedule = ScheduleKind::zbv}), even_stages(6, 4));
  const ParallelConfig uneven{
      .pipeline = 2, .schedule = ScheduleKind::interleaved, .chunks = 2, .stages = {3, 0, 2, 1}};
  EXPECT_EQ(stage_layout(model, uneven), stages_of_counts(6, {3, 0, 2, 1}));
  EXPECT_THROW(stage_layout(model, {.pipeline = 2, .stages = {3, 2, 1}}), ConfigError);
  EXPECT_THROW(stage_layout(model, {.pipeline = 7}), ConfigError);
}

// The head is 0.605 of a layer. With 64 layers on 8 ranks no cut is better than a head on top; with
// 63 its rank has a layer less.
TEST(Stages, BalanceTheHeadOfGrok1) {
  LayerCosts costs{.layers = std::vector<double>(64, 1.0), .embedding = 0.01, .head = 0.605};
  EXPECT_EQ(counts_of(balance_stages(costs, 8)), Counts(8, 8));
  costs.layers.assign(63, 1.0);
  EXPECT_EQ(counts_of(balance_stages(costs, 8)), (Counts{8, 8, 8, 8, 8, 8, 8, 7}));
  costs.head = 2.5;
  EXPECT_EQ(counts_of(balance_stages(costs, 8)), (Counts{8, 8, 8, 8, 8, 8, 9, 6}));
  // The two chunks of rank 0 have embedding and head.
  costs.layers.assign(30, 1.0);
  const StageLayout v = balance_ranks(costs, StagePlacement::v, 4, 2);
  EXPECT_DOUBLE_EQ(largest(rank_costs(v, costs, StagePlacement::v, 4)), 6 + 0.01 + 2.5);
  EXPECT_EQ(counts_of(v), (Counts{4, 4, 4, 4, 4, 4, 4, 2}));
}

TEST(Stages, CannotBalanceWhatIsNoCost) {
  EXPECT_THROW(balance_stages({.layers = {1, -1}}, 2), ContractError);
  EXPECT_THROW(balance_stages({.layers = {1}, .head = std::numeric_limits<double>::infinity()}, 2),
               ContractError);
  EXPECT_THROW(balance_stages({.layers = {1}}, 0), ContractError);
  EXPECT_THROW(balance_ranks({.layers = {1}}, StagePlacement::v, 2, 3), ContractError);
}

}  // namespace
}  // namespace memphis
