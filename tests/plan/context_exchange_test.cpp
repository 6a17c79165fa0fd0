// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/context_exchange.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/training_plan.h"

namespace memphis {
namespace {

constexpr std::int64_t kNumRanks = 256;

Config grok(const std::vector<std::string>& overrides) {
  std::vector<std::string> all = {"parallel.expert=8", "batch.global_batch=2048"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return parse_config(
      "model: {preset: grok-1, max_sequence_length: 131072}\n"
      "run: {dir: runs/grok, device: cuda}\n"
      "batch: {sequence_length: 8192, micro_batch: 1}\n"
      "schedule: {steps: 10}\n"
      "metrics: {sample_every: 0}\n",
      "config.yaml",
      all,
      Check::text,
      kNumRanks);
}

ContextExchange chosen(const std::vector<std::string>& overrides, Device device = Device::cuda) {
  const Config config = grok(overrides);
  const Dims dims = make_dims(
      config.model,
      config.batch.micro_batch,
      config.batch.sequence_length,
      make_share(config.model, config.parallel, Mesh(config.parallel, kNumRanks), kNumRanks - 1));
  return choose_key_exchange(config, dims, device);
}

// Of Grok-1's 48 query and 8 key/value heads: 2 x 1 x 8 / 48 x 550 T / (8192 x 361 G) within a machine
// and 50 G beyond it.
TEST(ContextExchange, GatheringIsPricedByItsLinks) {
  EXPECT_NEAR(gathered_share(grok({"parallel.context=2"}), Device::cuda), 0.0620, 5e-4);
  EXPECT_NEAR(gathered_share(grok({"parallel.context=2", "parallel.tensor=8"}), Device::cuda),
              0.4476,
              5e-4);
  EXPECT_NEAR(
      gathered_share(
          grok({"parallel.context=16", "parallel.tensor=4", "batch.sequence_length=131072"}),
          Device::cuda),
      0.4196,
      5e-4);
}

TEST(ContextExchange, ARingIsTakenWhereGatheringCostsATenth) {
  EXPECT_EQ(chosen({"parallel.context=2"}), ContextExchange::gather);
  EXPECT_EQ(chosen({"parallel.context=2", "parallel.tensor=8"}), ContextExchange::ring);
  EXPECT_EQ(chosen({"parallel.context=2", "parallel.tensor=8"}, Device::cpu),
            ContextExchange::gather);
}

TEST(ContextExchange, WhatIsAskedForIsTaken) {
  for (const auto& [name, way] : {std::pair("gather", ContextExchange::gather),
                                  std::pair("ring", ContextExchange::ring),
                                  std::pair("all_to_all", ContextExchange::all_to_all)}) {
    for (const char* context : {"parallel.context=2", "parallel.context=8"}) {
      EXPECT_EQ(chosen({context, std::string("parallel.context_exchange=") + name}), way)
          << context;
    }
  }
}

// A model that writes samples has one sequence: too few tokens may be no whole parts.
TEST(ContextExchange, AFewTokensOfASampleAreGathered) {
  const Config config = grok({"parallel.context=4",
                              "parallel.context_exchange=ring",
                              "batch.sequence_length=24",
                              "batch.micro_batch=8"});
  const Share share{.context = {.index = 3, .count = 4}};
  EXPECT_EQ(choose_key_exchange(config, make_dims(config.model, 8, 24, share), Device::cuda),
            ContextExchange::ring);
  EXPECT_EQ(choose_key_exchange(config, make_dims(config.model, 1, 24, share), Device::cuda),
            ContextExchange::gather);
}

TEST(ContextExchange, ARingGoesRound) {
  const Piece ring{.index = 1, .count = 4};
  for (const auto& [steps, to, from] : {std::tuple(1, 2, 0),
                                        std::tuple(3, 0, 2),
                                        std::tuple(-1, 0, 2),
                                        std::tuple(-2, 3, 3),
                                        std::tuple(0, 1, 1)}) {
    const RingStep step = ring_step(ring, steps);
    EXPECT_EQ(step.to, to) << steps;
    EXPECT_EQ(step.from, from) << steps;
  }
}

TEST(ContextExchange, IsSaidInAPlan) {
  const Config config = grok({"parallel.context=2", "parallel.tensor=8"});
  Dims dims = make_dims(config.model, 1, 8192, {.context = {.index = 0, .count = 2}});
  dims.key_exchange = ContextExchange::ring;
  EXPECT_EQ(describe_key_exchange(config, dims),
            "2 ranks share out each sequence, 4096 tokens each (zigzag where it is one document, "
            "else blocks); keys travel in a ring (gathering them takes 45 % of what attention does "
            "forward)");
}

}  // namespace
}  // namespace memphis
