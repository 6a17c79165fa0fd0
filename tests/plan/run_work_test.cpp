// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/run_work.h"

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"
#include "csrc/core/error.h"
#include "csrc/plan/flops.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

constexpr double kRounding = 1e-12;

Config grok1(const std::vector<std::string>& overrides, std::int64_t num_ranks) {
  return parse_config(
      "model: {preset: grok-1}\n"
      "run: {dir: runs/x, device: cuda}\n"
      "batch: {sequence_length: 8192, micro_batch: 1, global_batch: 512}\n"
      "schedule: {steps: 1}\n"
      "metrics: {sample_every: 0}\n",
      "config.yaml",
      overrides,
      Check::text,
      num_ranks);
}

// Bytes of a pass, by what they are of.
double bytes_of(const LayerWork& layer, ExchangeKind kind) {
  double bytes = 0;
  for (const PassWork* pass :
       {&layer.forward, &layer.again, &layer.backward_inputs, &layer.backward_weights}) {
    for (const Exchange& exchange : pass->exchanges) {
      if (exchange.kind == kind) {
        bytes += exchange.bytes;
      }
    }
  }
  return bytes;
}
double sum_of(const std::vector<Exchange>& exchanges) {
  double bytes = 0;
  for (const Exchange& exchange : exchanges) {
    bytes += exchange.bytes;
  }
  return bytes;
}

double flops_of(const LayerWork& layer) {
  double flops = 3 * layer.forward.scores;
  for (const PassWork* pass : {&layer.forward, &layer.backward_inputs, &layer.backward_weights}) {
    for (const Product& product : pass->products) {
      flops += product.flops();
    }
  }
  return flops;
}

constexpr std::size_t kRoom = std::size_t{1} << 40;

struct Works {
  RunWork described;
  RunWork planned;
};
Works works_of(const Config& config, std::int64_t num_ranks) {
  const Mesh mesh(config.parallel, num_ranks);
  const DeviceRoom room{.device = Device::cuda, .library_bytes = 0, .budget_bytes = kRoom};
  return {run_work(describe_run(config, DType::bf16, num_ranks)),
          run_work(config, DType::bf16, mesh, plan_all_stages(config, DType::bf16, room, mesh))};
}

// A description's FLOP are the model's, but for the router, which is left out of a rank's work.
TEST(RunWork, HasTheFlopOfTheModel) {
  for (const std::int64_t pieces : {1, 2}) {
    const Config config = grok1({"parallel.tensor=4",
                                 "parallel.expert=" + std::to_string(8 / pieces),
                                 "parallel.expert_tensor=" + std::to_string(pieces)},
                                8);
    const RunDescription run = describe_run(config, DType::bf16, 8);
    const DescribedFlops flops = flops_per_token(run.model, 8192);
    const ModelFlops model = model_flops_per_token(config.model, 8192);
    EXPECT_NEAR(flops.halved, model.halved, kRounding * model.halved);
    EXPECT_NEAR(flops.unhalved, model.unhalved, kRounding * model.unhalved);
    const RunWork work = run_work(run);
    const double router = 6.0 * 64 * 6144 * 8;
    // Four ranks along tensor have a micro-batch of 8192 tokens.
    const double of_rank = 64 * flops_of(work.kinds.front()) + flops_of(work.head);
    EXPECT_NEAR(of_rank, (model.halved - router) * 8192 / 4, 1e-9 * of_rank) << pieces;
  }
}

// What a description sends is what the plan's list of operations sends, for what both can say.
TEST(RunWork, SendsWhatThePlanSends) {
  struct Case {
    std::vector<std::string> overrides;
    std::int64_t num_ranks;
  };
  for (const Case& tested : std::vector<Case>{
           {{"parallel.tensor=4", "parallel.expert=8"}, 64},
           {{"parallel.tensor=2", "parallel.expert=4", "parallel.expert_tensor=2"}, 8},
           {{"parallel.tensor=8", "parallel.expert=8", "parallel.pipeline=4"}, 64},
           {{"parallel.pipeline=8", "parallel.schedule=zb-h1", "parallel.tensor=4"}, 64},
           {{"parallel.expert=8", "memory.recompute=norm"}, 16}}) {
    const Config config = grok1(tested.overrides, tested.num_ranks);
    const Works works = works_of(config, tested.num_ranks);
    for (const ExchangeKind kind : {ExchangeKind::tensor, ExchangeKind::rows}) {
      const double expected = bytes_of(works.planned.kinds[0], kind);
      // The plan's balance statistics and the gates of rows are not described.
      EXPECT_NEAR(bytes_of(works.described.kinds[0], kind), expected, 0.001 * expected)
          << testing::PrintToString(tested.overrides) << " kind " << static_cast<int>(kind);
    }
    // Norms and routers are not described, and a rank's embedding is.
    const double reduced = sum_of(works.planned.reductions);
    EXPECT_NEAR(sum_of(works.described.reductions), reduced, 0.02 * reduced)
        << testing::PrintToString(tested.overrides);
  }
}

// Weights, gradients and state of experts and matrices: what a plan has at least.
TEST(RunWork, HasNoMoreStateThanThePlan) {
  for (const std::vector<std::string>& overrides : std::vector<std::vector<std::string>>{
           {"parallel.expert=8"},
           {"parallel.tensor=4", "parallel.expert=8", "parallel.pipeline=2"},
           {"parallel.zero=0", "parallel.expert=8"}}) {
    const Config config = grok1(overrides, 64);
    const Mesh mesh(config.parallel, 64);
    const DeviceRoom room{.device = Device::cuda, .library_bytes = 0, .budget_bytes = kRoom};
    const MemoryPlan memory = plan_all_stages(config, DType::bf16, room, mesh).largest.memory;
    const auto planned = static_cast<double>(memory.weights_bytes + memory.gradients_bytes +
                                             memory.master_bytes + memory.moments_bytes);
    const double least = least_state_bytes(describe_run(config, DType::bf16, 64));
    EXPECT_LE(least, planned) << testing::PrintToString(overrides);
    EXPECT_GT(least, 0.9 * planned) << testing::PrintToString(overrides);
  }
}

TEST(RunWork, ComputesAgainWhatThePlanDoes) {
  const Config config =
      grok1({"parallel.expert=8", "memory.recompute=block", "memory.recompute_layers=3"}, 8);
  const RunWork work = works_of(config, 8).planned;
  EXPECT_EQ(std::count(work.kind_of_layer.begin(), work.kind_of_layer.end(), 0U), 3);
  const PassWork& again = work.kinds[0].again;
  double flops = again.scores;
  for (const Product& product : again.products) {
    flops += product.flops();
  }
  const double expected =
      8192 *
      recompute_cost_of_layer(config.model, 8192, DType::bf16, config.memory.recompute).flops;
  EXPECT_NEAR(flops, expected, 1e-9 * expected);
  EXPECT_GT(bytes_of({.forward = again, .again = {}, .backward_inputs = {}, .backward_weights = {}},
                     ExchangeKind::rows),
            0);
  EXPECT_TRUE(work.kinds[1].again.products.empty());
}

// Where the plan has no room for pairs of passes, though the config allows them, nothing is hidden.
TEST(RunWork, HidesRowsWhereThePlanDoes) {
  constexpr std::int64_t kRanks = 16;
  constexpr std::size_t kAny = std::size_t{1} << 60;
  const auto overlaps = [&](const std::string& choice, std::size_t budget) {
    const Config config = grok1(
        {"parallel.expert=8", "parallel.pipeline=2", "parallel.overlap_experts=" + choice}, kRanks);
    const Mesh mesh(config.parallel, kRanks);
    const DeviceRoom room{.device = Device::cuda, .library_bytes = 0, .budget_bytes = budget};
    const RunWork work =
        run_work(config, DType::bf16, mesh, plan_all_stages(config, DType::bf16, room, mesh));
    EXPECT_EQ(work.run.techniques.expert_overlap, work.schedule.shape.paired);
    return work.schedule.shape.paired;
  };
  EXPECT_TRUE(overlaps("auto", kAny));
  EXPECT_FALSE(overlaps("auto", 0));
  EXPECT_FALSE(overlaps("never", kAny));
  EXPECT_TRUE(overlaps("required", 0));
}

// In four chunks of 2048 tokens a quarter of what is gathered before a product is seen, and of what is
// summed behind one; in the backward pass a quarter of what the first product gathers. A description
// sees no more, because it says what no plan takes less than.
TEST(RunWork, SeesOneChunkOfWhatTensorRanksExchange) {
  const auto seen = [](const PassWork& pass) {
    double bytes = 0;
    for (const Exchange& exchange : pass.exchanges) {
      bytes += exchange.kind == ExchangeKind::tensor && !exchange.beside ? exchange.bytes : 0;
    }
    return bytes;
  };
  const double tokens = 2.0 * 8192 * 6144;
  const Works works = works_of(grok1({"parallel.tensor=4", "parallel.expert=8"}, 64), 64);
  const LayerWork& planned = works.planned.kinds[0];
  // And the numbers of balance, a few bytes.
  EXPECT_NEAR(seen(planned.forward), tokens / 4 * 2, 0.001 * tokens);
  EXPECT_NEAR(seen(planned.backward_inputs), tokens / 4, 0.001 * tokens);
  EXPECT_EQ(seen(planned.backward_weights), 0);
  EXPECT_EQ(planned.forward.products[0].M, 2048);
  EXPECT_EQ(planned.forward.products[0].count, 4);
  EXPECT_EQ(planned.backward_inputs.products[0].M, 8192) << "beside the other product";
  EXPECT_EQ(planned.backward_inputs.products[1].M, 2048);
  const LayerWork& described = works.described.kinds[0];
  EXPECT_LE(seen(described.forward), seen(planned.forward));
  EXPECT_LE(seen(described.backward_inputs), seen(planned.backward_inputs));
  EXPECT_EQ(works.described.kinds[0].forward.products[0].M, 8192);

  const Works never = works_of(
      grok1({"parallel.tensor=4", "parallel.expert=8", "parallel.overlap_tensor=never"}, 64), 64);
  EXPECT_NEAR(seen(never.planned.kinds[0].forward), 2 * tokens, 0.001 * tokens);
  EXPECT_EQ(never.planned.kinds[0].forward.products[0].count, 1);
}

TEST(RunWork, GathersShardedWeightsForEachPass) {
  const Config config = grok1({"parallel.zero=3"}, 16);
  const RunWork work = works_of(config, 16).planned;
  const double layer = 2.0 * (6144.0 * 6144 * 2 + 2.0 * 6144 * 1024 + 24.0 * 6144 * 32768);
  const auto bytes_of_pass = [](const PassWork& pass) {
    LayerWork alone;
    alone.forward = pass;
    return bytes_of(alone, ExchangeKind::weights);
  };
  // Gathered forward and backward in bf16, and reduced in f32.
  EXPECT_NEAR(bytes_of_pass(work.kinds[0].forward), layer, 0.01 * layer);
  EXPECT_NEAR(bytes_of_pass(work.kinds[0].backward_inputs), layer, 0.01 * layer);
  EXPECT_NEAR(bytes_of_pass(work.kinds[0].backward_weights), 2 * layer, 0.01 * layer);
}

TEST(RunWork, DoublePrecisionHasNoMachine) {
  const Config config = grok1({"parallel.expert=8"}, 8);
  const std::string text =
      test::error_text<ConfigError>([&] { describe_run(config, DType::f64, 8); });
  EXPECT_TRUE(test::follows_grammar(text)) << text;
}

}  // namespace
}  // namespace memphis
