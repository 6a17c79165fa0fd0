// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/ways_to_fit.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"

namespace memphis {
namespace {

// A model of a few hundred thousand parameters, whose activations are the larger part.
constexpr const char* kSmall = R"(
model: {vocab_size: 512, num_layers: 8, d_model: 64, num_heads: 8, num_kv_heads: 4, ffn_dim: 128,
        num_experts: 8}
run: {dir: runs/x, device: cpu}
batch: {sequence_length: 128, micro_batch: 4, global_batch: 256}
schedule: {steps: 1}
metrics: {sample_every: 0}
)";

// One whose weights are.
constexpr const char* kWide = R"(
model: {vocab_size: 1024, num_layers: 4, d_model: 256, num_heads: 8, num_kv_heads: 8, ffn_dim: 1024,
        num_experts: 16, dense_ffn_dim: 512}
run: {dir: runs/x, device: cpu}
batch: {sequence_length: 32, micro_batch: 1, global_batch: 64}
schedule: {steps: 1}
metrics: {sample_every: 0}
)";

struct Case {
  const char* yaml;
  std::int64_t num_ranks;
  std::vector<std::string> overrides;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> table = {
      {kSmall, 1, {}},
      {kSmall, 1, {"memory.recompute=none"}},
      {kSmall, 4, {"memory.recompute=norm", "memory.recompute_layers=3"}},
      {kSmall, 8, {"parallel.expert=4"}},
      {kSmall, 8, {"parallel.pipeline=2", "parallel.stages=[3,5]", "parallel.zero=0"}},
      {kSmall, 16, {"parallel.tensor=4", "parallel.expert=8", "memory.recompute=none"}},
      {kWide, 2, {}},
      {kWide, 8, {"parallel.expert=2", "parallel.zero=0"}},
      {kWide, 16, {"parallel.pipeline=2", "parallel.schedule=interleaved", "parallel.chunks=2"}},
  };
  return table;
}

Config config_of(const Case& tested) {
  return parse_config(tested.yaml, "config.yaml", tested.overrides, Check::text, tested.num_ranks);
}

DeviceRoom room_of(std::size_t bytes) {
  return {.device = Device::cpu, .library_bytes = 0, .budget_bytes = bytes};
}

std::size_t needed(const Config& config, std::size_t budget, std::int64_t num_ranks) {
  const StagePlans plans =
      plan_all_stages(config, DType::bf16, room_of(budget), Mesh(config.parallel, num_ranks));
  return *std::max_element(plans.bytes.begin(), plans.bytes.end());
}

WaysToFit ways_of(const Config& config, std::size_t budget, std::int64_t num_ranks) {
  return ways_to_fit(config, DType::bf16, room_of(budget), num_ranks);
}

bool changes(const WayToFit& way, const std::string& key) {
  return std::any_of(way.overrides.begin(), way.overrides.end(), [&](const std::string& each) {
    return each.starts_with(key + "=");
  });
}

// A knob is one key; what the ranks that are left of it are follows.
std::set<std::string> knobs_of(const WayToFit& way) {
  std::set<std::string> keys;
  for (const std::string& each : way.overrides) {
    keys.insert(each.substr(0, each.find('=')));
  }
  keys.erase("parallel.data");
  keys.erase("parallel.stages");
  keys.erase("memory.recompute_layers");
  return keys;
}

// Knobs, more ranks, shorter sequences.
int place_of(const WayToFit& way, std::int64_t num_ranks) {
  return changes(way, "batch.sequence_length") ? 2 : way.num_ranks > num_ranks ? 1 : 0;
}

// From what a config needs if all is computed again to what it never gets below.
TEST(WaysToFit, AreValidAndFitAndComeByTheirPrice) {
  std::size_t num_ways = 0;
  std::set<std::string> offered;
  for (const Case& tested : cases()) {
    const Config config = config_of(tested);
    const std::size_t least = needed(config, 0, tested.num_ranks);
    for (const double part : {0.99, 0.8, 0.6, 0.4, 0.2, 0.05}) {
      const auto budget = static_cast<std::size_t>(part * static_cast<double>(least));
      const WaysToFit found = ways_of(config, budget, tested.num_ranks);
      const std::string what = std::string(tested.yaml == kSmall ? "small" : "wide") + " on " +
                               std::to_string(tested.num_ranks) + " ranks, " +
                               std::to_string(budget) + " bytes\n" +
                               describe(found, tested.num_ranks);
      EXPECT_LE(found.ways.size(), 3U) << what;
      EXPECT_TRUE(found.smallest || !found.ways.empty()) << what;
      for (std::size_t i = 0; i < found.ways.size(); ++i) {
        const WayToFit& way = found.ways[i];
        ++num_ways;
        offered.merge(knobs_of(way));
        // As the user would paste it.
        const Config pasted =
            parse_config(to_yaml(config), "config.yaml", way.overrides, Check::text, way.num_ranks);
        EXPECT_EQ(pasted, way.config) << what;
        EXPECT_LE(way.bytes, budget) << what;
        EXPECT_EQ(way.bytes, needed(pasted, budget, way.num_ranks)) << what;
        EXPECT_GT(way.cost.price, 0) << what;
        if (i > 0) {
          const int before = place_of(found.ways[i - 1], tested.num_ranks);
          const int place = place_of(way, tested.num_ranks);
          EXPECT_LE(before, place) << what;
          EXPECT_TRUE(before < place || found.ways[i - 1].cost.price <= way.cost.price) << what;
          for (std::size_t j = 0; j < i; ++j) {
            const std::set<std::string> fewer = knobs_of(found.ways[j]);
            const std::set<std::string> more = knobs_of(way);
            EXPECT_TRUE(place > 0 ||
                        !std::includes(more.begin(), more.end(), fewer.begin(), fewer.end()))
                << "a knob beside one that does it alone\n"
                << what;
          }
        }
        EXPECT_TRUE(i > 0 || !changes(way, "batch.sequence_length")) << what;
      }
      const bool by_knobs =
          !found.ways.empty() && place_of(found.ways.front(), tested.num_ranks) == 0;
      EXPECT_EQ(found.smallest.has_value(), !by_knobs) << what;
      if (found.smallest) {
        EXPECT_GT(found.smallest->bytes, budget) << what;
        EXPECT_LE(found.smallest->bytes, least) << what;
      }
    }
  }
  EXPECT_GT(num_ways, 60U) << "or nothing has been held to anything";
  const std::set<std::string> all = {"batch.micro_batch",
                                     "batch.sequence_length",
                                     "memory.recompute",
                                     "parallel.expert",
                                     "parallel.expert_buffer",
                                     "parallel.expert_tensor",
                                     "parallel.pipeline",
                                     "parallel.tensor",
                                     "parallel.zero"};
  EXPECT_EQ(offered, all);
}

TEST(WaysToFit, AreNoneWhereItFits) {
  for (const Case& tested : cases()) {
    const Config config = config_of(tested);
    const std::size_t least = needed(config, 0, tested.num_ranks);
    const WaysToFit found = ways_of(config, least, tested.num_ranks);
    EXPECT_TRUE(found.ways.empty());
    EXPECT_FALSE(found.smallest.has_value());
    EXPECT_EQ(describe(found, tested.num_ranks), "");
    EXPECT_NE(describe(ways_of(config, least - 1, tested.num_ranks), tested.num_ranks), "");
  }
}

// What was fixed is freed before anything else is asked for, and it costs least.
TEST(WaysToFit, ComputeAgainWhatMayBe) {
  const Config config = config_of({kSmall, 1, {"memory.recompute=none"}});
  const WaysToFit found = ways_of(config, needed(config, 0, 1) - 1, 1);
  ASSERT_FALSE(found.ways.empty());
  EXPECT_EQ(found.ways.front().overrides, std::vector<std::string>{"memory.recompute=auto"});
  EXPECT_GT(found.ways.front().cost.again_share, 0);
  EXPECT_EQ(found.given.again_share, 0);
}

// Less room for rows costs nothing that is counted, and may end a run.
// What the user has asked for takes one more micro-batch under way.
TEST(WaysToFit, LeaveOutPairsOfPasses) {
  const std::vector<std::string> given = {"parallel.expert=4", "memory.recompute=block"};
  const auto config_with = [&](const std::string& choice) {
    std::vector<std::string> overrides = given;
    overrides.push_back("parallel.overlap_experts=" + choice);
    return config_of({kSmall, 8, overrides});
  };
  constexpr std::size_t kRoom = std::size_t{1} << 60;
  const std::size_t without = needed(config_with("never"), kRoom, 8);
  const std::size_t with = needed(config_with("required"), kRoom, 8);
  ASSERT_LT(without, with);
  const auto leaves_out = [](const WayToFit& way) {
    return changes(way, "parallel.overlap_experts") && way.overrides.size() == 1;
  };
  const WaysToFit ways = ways_of(config_with("required"), without, 8);
  EXPECT_TRUE(std::any_of(ways.ways.begin(), ways.ways.end(), leaves_out));
}

TEST(WaysToFit, SayWhatTheyRisk) {
  const Config config = config_of({kSmall, 8, {"parallel.expert=8", "batch.micro_batch=1"}});
  const WaysToFit found = ways_of(config, needed(config, 0, 8) - 1, 8);
  const auto buffer = std::find_if(found.ways.begin(), found.ways.end(), [](const WayToFit& way) {
    return changes(way, "parallel.expert_buffer");
  });
  ASSERT_NE(buffer, found.ways.end()) << describe(found, 8);
  EXPECT_NE(describe(found, 8).find("routes more to one rank ends the run"), std::string::npos);
  for (const WayToFit& way : found.ways) {
    EXPECT_EQ(way.risk.empty(), !changes(way, "parallel.expert_buffer"));
  }
}

// One rank can cut nothing, and a model that no knob makes small enough needs more of them.
TEST(WaysToFit, AskForRanksWhereNothingElseIsEnough) {
  const Config config = config_of({kWide, 1, {}});
  const WaysToFit found = ways_of(config, needed(config, 0, 1) / 4, 1);
  ASSERT_TRUE(found.smallest.has_value());
  ASSERT_FALSE(found.ways.empty());
  EXPECT_GT(found.ways.front().num_ranks, 1);
  const std::string text = describe(found, 1);
  EXPECT_NE(text.find("nothing that was tried on 1 rank makes it fit"), std::string::npos) << text;
  EXPECT_NE(text.find(" " + std::to_string(found.ways.front().num_ranks) + " ranks"),
            std::string::npos)
      << text;
  const WaysToFit none = ways_of(config, 1, 1);
  EXPECT_TRUE(none.ways.empty());
  EXPECT_NE(describe(none, 1).find("nor was a way found"), std::string::npos);
}

// Stages that were written out are those of another pipeline.
TEST(WaysToFit, LeaveStagesToALongerPipeline) {
  const Config config = config_of({kSmall, 8, {"parallel.pipeline=2", "parallel.stages=[3,5]"}});
  const std::size_t least = needed(config, 0, 8);
  bool offered = false;
  for (const double part : {0.9, 0.8, 0.7, 0.6, 0.5}) {
    const auto budget = static_cast<std::size_t>(part * static_cast<double>(least));
    for (const WayToFit& way : ways_of(config, budget, 8).ways) {
      offered = offered || (way.num_ranks == 8 && changes(way, "parallel.pipeline"));
      EXPECT_EQ(changes(way, "parallel.stages"), changes(way, "parallel.pipeline"));
    }
  }
  EXPECT_TRUE(offered);
}

// A model that nothing cuts, of one sequence a step: shorter ones would fit, and train another
// model.
TEST(WaysToFit, AreNotShorterSequencesAlone) {
  const Config config = config_of({kSmall,
                                   1,
                                   {"model.num_heads=1",
                                    "model.num_kv_heads=1",
                                    "model.num_layers=1",
                                    "model.num_experts=1",
                                    "model.experts_per_token=1",
                                    "model.ffn_dim=129",
                                    "batch.micro_batch=1",
                                    "batch.global_batch=1"}});
  const WaysToFit found = ways_of(config, needed(config, 0, 1) - 1, 1);
  EXPECT_TRUE(found.ways.empty()) << describe(found, 1);
  EXPECT_TRUE(found.smallest.has_value());
}

// What of each kind a step is priced by.
TEST(StepCost, CountsWhatAKnobCosts) {
  const auto cost_of = [](std::int64_t num_ranks, const std::vector<std::string>& overrides) {
    const Config config = config_of({kSmall, num_ranks, overrides});
    const Mesh mesh(config.parallel, num_ranks);
    const StagePlans plans =
        plan_all_stages(config, DType::bf16, room_of(std::size_t{1} << 40), mesh);
    return step_cost(config, DType::bf16, mesh, plans);
  };
  const StepCost alone = cost_of(1, {});
  EXPECT_EQ(alone.num_micro_batches, 64);
  EXPECT_EQ(alone.sent_bytes, 0);
  EXPECT_EQ(alone.again_share, 0);
  EXPECT_GT(cost_of(1, {"batch.micro_batch=2"}).price, alone.price) << "weights are read twice";
  const StepCost again = cost_of(1, {"memory.recompute=block"});
  EXPECT_GT(again.again_share, 0.2);
  EXPECT_LT(again.again_share, 1.0 / 3);
  EXPECT_GT(again.price, alone.price + again.again_share);

  // Both gradients and weights go to all but one of the pieces; without the shared state gradients
  // go twice.
  const StepCost sharded = cost_of(4, {});
  const StepCost whole = cost_of(4, {"parallel.zero=0"});
  EXPECT_GT(sharded.sent_bytes, 0);
  EXPECT_GT(whole.sent_bytes, sharded.sent_bytes);
  EXPECT_GT(cost_of(4, {"parallel.zero=2"}).sent_bytes, 10 * sharded.sent_bytes)
      << "gradients of 16 micro-batches";
  EXPECT_GT(cost_of(4, {"parallel.expert=4"}).sent_bytes, sharded.sent_bytes);
  EXPECT_GT(cost_of(4, {"parallel.tensor=4"}).sent_bytes, sharded.sent_bytes);

  const StepCost piped = cost_of(4, {"parallel.pipeline=4"});
  EXPECT_EQ(piped.messages, 64) << "the first stage holds most, and sends in one direction";
  EXPECT_GT(piped.bubble_share, 0.03);
  EXPECT_GT(cost_of(4, {"parallel.pipeline=4", "batch.micro_batch=16"}).bubble_share,
            piped.bubble_share)
      << "fewer micro-batches";
  // As much work for each rank, and nearly as many bytes, which cost nine times as much where they
  // leave the machine.
  const double one = cost_of(1, {"batch.global_batch=64"}).price;
  const double near = cost_of(8, {"batch.global_batch=512"}).price - one;
  const double far = cost_of(16, {"batch.global_batch=1024"}).price - one;
  EXPECT_GT(near, 0);
  EXPECT_NEAR(far / near, 9.0 * (15.0 / 16) / (7.0 / 8), 0.5) << "segments end padded";
}

}  // namespace
}  // namespace memphis
