// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/recompute.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"
#include "csrc/plan/training_plan.h"

namespace memphis {
namespace {

Config config_of(const std::vector<std::string>& overrides, std::int64_t num_ranks = 1) {
  return parse_config(
      "model: {preset: grok-1}\nrun: {dir: runs/x, device: cuda}\n"
      "batch: {sequence_length: 8192, micro_batch: 1, global_batch: 64}\n"
      "schedule: {steps: 1}\nmetrics: {sample_every: 0}\n",
      "grok1.yaml",
      overrides,
      Check::elsewhere,
      num_ranks);
}

ActivationPlan plan_of(const Dims& dims, const Recompute& recompute) {
  ActivationPlan plan = plan_activations(dims, DType::bf16, Keep::all_layers, Device::cuda);
  plan.recompute = recompute;
  return plan;
}
std::size_t activation_bytes(const Dims& dims, const Recompute& recompute) {
  return plan_of(dims, recompute).activation_bytes();
}

// Grok-1 at 8192 tokens: numbers of bf16 that a layer keeps for each of them.
TEST(Recompute, LeavesOutWhatItGivesBack) {
  const Config config = config_of({});
  const Dims dims = make_dims(config.model, 1, 8192);
  constexpr std::int64_t kD = 6144;
  constexpr std::int64_t kF = 32768;
  constexpr std::int64_t kK = 2;
  const auto saved = [&](const RecomputeGroups& groups) {
    return static_cast<std::int64_t>(
               (activation_bytes(dims, {}) - activation_bytes(dims, {groups, 64})) / (64 * 2)) /
           8192;
  };
  EXPECT_EQ(saved({.norm = true}), 2 * kD + kK * kD) << "inputs of two branches, and their rows";
  EXPECT_EQ(saved({.attention = true}), kD);
  EXPECT_EQ(saved({.experts = true}), kK * 2 * kF);
  EXPECT_EQ(saved({.geglu = true}), kK * kF);
  const std::int64_t qkv = (48 + 2 * 8) * 128;
  EXPECT_EQ(saved({.block = true}), 2 * kD + kK * kD + kD + 3 * kK * kF + qkv + 2 * kD)
      << "and queries, keys, values, what attention gives and what lies between the branches";
  EXPECT_EQ(saved({.norm = true, .geglu = true}), saved({.norm = true}) + saved({.geglu = true}));
}

TEST(Recompute, OfSomeLayersLeavesOutAsMuchOfEach) {
  const Config config = config_of({});
  const Dims dims = make_dims(config.model, 1, 128);
  const std::size_t all = activation_bytes(dims, {});
  const std::size_t one = all - activation_bytes(dims, {{.geglu = true}, 1});
  const Recompute five = {{.geglu = true}, 5, {.norm = true}};
  EXPECT_EQ(all - activation_bytes(dims, {{.geglu = true}, 5}), 5 * one);
  EXPECT_EQ(five.of_layer(4), five.groups);
  EXPECT_EQ(five.of_layer(5), five.rest);
}

// Rows that come from other ranks would have to be sent again.
TEST(Recompute, OfNormsKeepsRowsOfOtherRanks) {
  const Config config = config_of({"parallel.expert=8"}, 8);
  const Dims dims =
      make_dims(config.model,
                1,
                8192,
                make_share(config.model, config.parallel, Mesh(config.parallel, 8), 0));
  EXPECT_EQ(activation_bytes(dims, {}) - activation_bytes(dims, {{.norm = true}, 64}),
            std::size_t{64} * 2 * 8192 * 2 * 6144);
}

// In FLOP of a token: two products of half a square of scores; the up-projections of two experts;
// all products of a layer but for those of the down-projections.
TEST(Recompute, CostsWhatItsProductsDo) {
  const ModelConfig model = config_of({}).model;
  const auto flops = [&](const RecomputeGroups& groups) {
    return recompute_cost(model, 8192, DType::bf16, {groups, 1}).flops;
  };
  EXPECT_EQ(flops({.norm = true}), 0);
  EXPECT_EQ(flops({.geglu = true}), 0);
  EXPECT_EQ(flops({.attention = true}), 2.0 * 8192 * 6144);
  EXPECT_EQ(flops({.experts = true}), 2 * 2.0 * 6144 * 65536);
  EXPECT_EQ(flops({.block = true}),
            flops({.attention = true}) + flops({.experts = true}) + 2.0 * 6144 * (64 + 48) * 128);
  EXPECT_EQ(recompute_cost(model, 8192, DType::bf16, {{.experts = true}, 7}).flops,
            7 * flops({.experts = true}));
  EXPECT_EQ(
      recompute_cost(model, 8192, DType::bf16, {{.experts = true}, 7, {.attention = true}}).flops,
      7 * flops({.experts = true}) + 57 * flops({.attention = true}));
}

TEST(RecomputeOptions, TakeEachLessMemoryAndMoreWork) {
  const Config config = config_of({});
  const Dims dims = make_dims(config.model, 1, 8192);
  const std::vector<Recompute> options =
      recompute_options(config.model, config.memory, dims, DType::bf16);
  ASSERT_GT(options.size(), 64U);
  EXPECT_FALSE(options.front().any());
  EXPECT_EQ(options.back(), (Recompute{{.block = true}, 64}));
  const auto bytes = [&](const Recompute& recompute) {
    const ActivationPlan plan = plan_of(dims, recompute);
    return plan.activation_bytes() + plan.workspace_bytes();
  };
  const auto weight = [&](const Recompute& recompute) {
    return recompute_cost(config.model, 8192, DType::bf16, recompute).weight();
  };
  for (std::size_t i = 1; i < options.size(); ++i) {
    EXPECT_LT(bytes(options[i]), bytes(options[i - 1])) << i;
    EXPECT_GE(weight(options[i]), weight(options[i - 1])) << i;
  }
}

TEST(RecomputeOptions, AreTheOneThatWasAskedFor) {
  for (const auto& [overrides, expected] :
       {std::pair<std::vector<std::string>, Recompute>{{"memory.recompute=none"}, {}},
        {{"memory.recompute=[norm, geglu]"}, {{.norm = true, .geglu = true}, 64}},
        {{"memory.recompute=block", "memory.recompute_layers=3"}, {{.block = true}, 3}}}) {
    const Config config = config_of(overrides);
    EXPECT_EQ(recompute_options(
                  config.model, config.memory, make_dims(config.model, 1, 8192), DType::bf16),
              std::vector<Recompute>{expected})
        << overrides.front();
  }
}

// Grok-1 where all activations but a quarter fit: what costs no products is given back in every
// layer before products are in some.
TEST(RecomputeOptions, DoInSomeLayersWhatIsDearAndInAllWhatIsCheap) {
  const Config config = config_of({});
  const Dims dims = make_dims(config.model, 1, 8192);
  const std::size_t all = activation_bytes(dims, {});
  for (const Recompute& each : recompute_options(config.model, config.memory, dims, DType::bf16)) {
    if (activation_bytes(dims, each) < all / 2) {
      EXPECT_TRUE(each.rest.norm && each.rest.geglu && !each.rest.experts) << describe(each, 64);
      EXPECT_TRUE(each.groups.experts && each.num_layers < 64) << describe(each, 64);
      break;
    }
  }
}

// The cheapest that fits, to the byte.
TEST(TrainingPlan, ComputesAgainNoMoreThanItMust) {
  const std::vector<std::string> layout = {"parallel.tensor=8",
                                           "parallel.expert=8",
                                           "parallel.expert_buffer=1.5",
                                           "parallel.overlap_experts=never"};
  const Config config = config_of(layout, 64);
  const Mesh mesh(config.parallel, 64);
  const auto plan_within = [&](std::size_t bytes, std::size_t option = 0) {
    return plan_training(config,
                         DType::bf16,
                         {.device = Device::cuda, .library_bytes = 0, .budget_bytes = bytes},
                         mesh,
                         5,
                         option);
  };
  const TrainingPlan roomy = plan_within(std::size_t{1} << 60);
  EXPECT_EQ(roomy.recompute_option, 0U);
  EXPECT_FALSE(roomy.activations.recompute.any());

  std::size_t budget = roomy.memory.total_bytes();
  EXPECT_EQ(plan_within(budget).recompute_option, 0U);
  for (std::size_t option = 1; option < 20; ++option) {
    const TrainingPlan plan = plan_within(budget - 1);
    EXPECT_EQ(plan.recompute_option, option);
    EXPECT_LT(plan.memory.total_bytes(), budget);
    budget = plan.memory.total_bytes();
  }
  EXPECT_EQ(plan_within(budget - 1, 3).recompute_option, 20U) << "if what others need is too much";
  const TrainingPlan none_fits = plan_within(0);
  EXPECT_EQ(none_fits.activations.recompute, (Recompute{{.block = true}, 64}));
  EXPECT_EQ(plan_within(std::size_t{1} << 60, 7).recompute_option, 7U) << "as others need it";
}

// A snapshot goes before anything is computed again for its sake, on the CPU, whose memory both are
// in; on a GPU, where it lies in the host's.
TEST(TrainingPlan, LeavesASnapshotOutWhereThereIsNoRoomForIt) {
  const auto plan_within = [&](Device device,
                               std::size_t bytes,
                               std::size_t host_bytes,
                               const std::vector<std::string>& more = {},
                               bool background = true) {
    std::vector<std::string> overrides = {
        "parallel.tensor=8", "parallel.expert=8", "parallel.expert_buffer=1.5"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    const Config config = config_of(overrides, 64);
    return plan_training(config,
                         DType::bf16,
                         {.device = device,
                          .library_bytes = 0,
                          .budget_bytes = bytes,
                          .host_budget_bytes = host_bytes},
                         Mesh(config.parallel, 64),
                         5,
                         0,
                         background);
  };
  constexpr std::size_t kRoom = std::size_t{1} << 60;
  const TrainingPlan roomy = plan_within(Device::cpu, kRoom, kRoom);
  const std::size_t snapshot = snapshot_bytes(roomy.parameters);
  EXPECT_TRUE(roomy.saves_in_background);
  EXPECT_EQ(roomy.memory.host.snapshot_bytes, snapshot);
  // Of bf16 the weights, and in f32 master weights and two moments; norms and routers in f32.
  const auto elements = static_cast<double>(master_bytes(roomy.parameters)) / 4;
  EXPECT_NEAR(static_cast<double>(snapshot), 14 * elements, 0.01 * 14 * elements);
  EXPECT_EQ(describe_saves(roomy, {}), "checkpoints are written while training goes on");

  const std::size_t needed = roomy.memory.needed_bytes(Device::cpu);
  EXPECT_TRUE(plan_within(Device::cpu, needed, kRoom).saves_in_background) << "to the byte";
  const TrainingPlan tight = plan_within(Device::cpu, needed - 1, kRoom);
  EXPECT_FALSE(tight.saves_in_background);
  EXPECT_EQ(tight.recompute_option, 0U);
  EXPECT_EQ(tight.memory.needed_bytes(Device::cpu), needed - snapshot);
  EXPECT_NE(describe_saves(tight, {}).find("there is no room for a snapshot of "),
            std::string::npos);
  EXPECT_GT(plan_within(Device::cpu, needed - snapshot - 1, kRoom).recompute_option, 0U);

  const std::size_t host = plan_within(Device::cuda, kRoom, kRoom).memory.host.total_bytes();
  EXPECT_TRUE(plan_within(Device::cuda, kRoom, host).saves_in_background);
  EXPECT_FALSE(plan_within(Device::cuda, kRoom, host - 1).saves_in_background);

  EXPECT_FALSE(
      plan_within(Device::cpu, kRoom, kRoom, {"checkpoint.background=never"}).saves_in_background);
  EXPECT_FALSE(plan_within(Device::cpu, kRoom, kRoom, {"checkpoint.every=0"}).saves_in_background);
  EXPECT_FALSE(plan_within(Device::cpu, kRoom, kRoom, {}, false).saves_in_background)
      << "another rank has no room";
  EXPECT_TRUE(
      plan_within(Device::cpu, 0, kRoom, {"checkpoint.background=required"}).saves_in_background)
      << "and the run is refused";
}

// The gradient of the head's weight goes through a GPU's memory once for each run of tokens.
TEST(TrainingPlan, HasLongRunsOfLogitsOnAGpu) {
  const auto rows = [](Device device, const std::vector<std::string>& overrides) {
    const Config config = config_of(overrides, 1);
    const TrainingPlan plan =
        plan_training(config,
                      DType::bf16,
                      {.device = device, .library_bytes = 0, .budget_bytes = 0},
                      Mesh(config.parallel, 1),
                      0);
    EXPECT_EQ(plan.activations.shared.logits_CV.dims[0], plan.dims.head_chunk);
    return plan.dims.head_chunk;
  };
  EXPECT_EQ(rows(Device::cpu, {}), 1024);
  EXPECT_EQ(rows(Device::cuda, {}), 4096);
  EXPECT_EQ(rows(Device::cuda, {"memory.head_rows=1024"}), 1024);
  EXPECT_EQ(rows(Device::cpu, {"memory.head_rows=2048"}), 2048);
  EXPECT_EQ(rows(Device::cuda, {"memory.head_rows=16384"}), 8192) << "all of a micro-batch";
  EXPECT_EQ(rows(Device::cuda, {"batch.sequence_length=2048"}), 2048) << "all of a micro-batch";
}

TEST(Recompute, SaysItself) {
  EXPECT_EQ(describe({}, 64), "nothing");
  EXPECT_EQ(describe({{.norm = true, .geglu = true}, 64}, 64), "norm, geglu in all 64 layers");
  EXPECT_EQ(describe({{.block = true}, 3}, 64), "whole blocks in the first 3 of 64 layers");
  EXPECT_EQ(describe({{.norm = true, .experts = true}, 32, {.norm = true}}, 64),
            "norm in all 64 layers, experts too in the first 32");
}

// The first layers of the model compute most again, so what makes the first stage fit is not always
// enough for the next. All ranks come to what has room on each.
TEST(TrainingPlan, ComputesAgainTheSameInAllStages) {
  const Config config =
      config_of({"parallel.pipeline=4", "parallel.tensor=4", "parallel.expert=8"}, 128);
  const Mesh mesh(config.parallel, 128);
  const DeviceRoom room{
      .device = Device::cuda, .library_bytes = 0, .budget_bytes = std::size_t{200} << 30};
  const StagePlans plans = plan_all_stages(config, DType::bf16, room, mesh);
  const TrainingPlan first = plan_training(config, DType::bf16, room, mesh, 0);
  const TrainingPlan last = plan_training(config, DType::bf16, room, mesh, 127);
  ASSERT_LT(last.recompute_option, first.recompute_option);
  ASSERT_LT(first.recompute_option, plans.largest.recompute_option);
  ASSERT_EQ(plans.bytes.size(), 4U);
  for (std::size_t place = 0; place < 4; ++place) {
    const auto rank = static_cast<std::int64_t>(32 * place);
    const TrainingPlan plan =
        plan_training(config, DType::bf16, room, mesh, rank, plans.largest.recompute_option);
    EXPECT_EQ(plan.recompute_option, plans.largest.recompute_option) << place;
    EXPECT_EQ(plans.bytes[place], plan.memory.total_bytes()) << place;
    EXPECT_LE(plans.bytes[place], room.budget_bytes) << place;
  }
  EXPECT_EQ(plans.largest.memory.total_bytes(),
            *std::max_element(plans.bytes.begin(), plans.bytes.end()));
  EXPECT_EQ(plans.bytes[static_cast<std::size_t>(plans.largest_rank)],
            plans.largest.memory.total_bytes());
}

// Where it is auto; what is asked for is there, and the run is refused if it does not fit.
TEST(ExpertOverlap, GoesBeforeAnythingIsComputedAgainForIt) {
  const auto config_with = [](const std::string& choice) {
    return config_of(
        {"parallel.expert=8", "checkpoint.background=never", "parallel.overlap_experts=" + choice},
        8);
  };
  const auto plan_within =
      [&](const std::string& choice, std::size_t bytes, std::size_t option = 0) {
        const Config config = config_with(choice);
        return plan_training(config,
                             DType::bf16,
                             {.device = Device::cuda, .library_bytes = 0, .budget_bytes = bytes},
                             Mesh(config.parallel, 8),
                             3,
                             option);
      };
  constexpr std::size_t kRoom = std::size_t{1} << 60;
  const TrainingPlan roomy = plan_within("auto", kRoom);
  EXPECT_TRUE(roomy.overlaps_experts);
  const std::size_t needed = roomy.memory.needed_bytes(Device::cuda);
  EXPECT_TRUE(plan_within("auto", needed).overlaps_experts) << "to the byte";
  const TrainingPlan tight = plan_within("auto", needed - 1);
  EXPECT_FALSE(tight.overlaps_experts);
  EXPECT_FALSE(tight.activations.recompute.any());
  EXPECT_EQ(tight.schedule.ranks, plan_within("never", kRoom).schedule.ranks);
  // A second micro-batch in its slot, and places for the rows of two passes.
  const std::size_t of_slot = tight.memory.activations_bytes;
  EXPECT_EQ(roomy.memory.activations_bytes, 2 * of_slot);
  const SharedActivations<TensorSpec>& shared = roomy.activations.shared;
  EXPECT_EQ(roomy.memory.workspace_bytes,
            tight.memory.workspace_bytes + arena_bytes(shared.sent_RD) +
                arena_bytes(shared.sent_gates_R1) + arena_bytes(shared.received_RD));

  const std::size_t without = tight.memory.needed_bytes(Device::cuda);
  EXPECT_FALSE(plan_within("auto", without).activations.recompute.any());
  EXPECT_TRUE(plan_within("auto", without - 1).activations.recompute.any());
  EXPECT_FALSE(plan_within("auto", kRoom, roomy.recompute_option + 1).overlaps_experts)
      << "another rank has no room";
  const TrainingPlan required = plan_within("required", 0);
  EXPECT_TRUE(required.overlaps_experts);
  EXPECT_TRUE(required.activations.recompute.groups.block);

  EXPECT_EQ(describe_expert_overlap(roomy, config_with("auto"))
                .find("rows travel to experts beside "
                      "the work of another "),
            0U);
  EXPECT_NE(describe_expert_overlap(tight, config_with("auto"))
                .find("there is no room for more micro-batches"),
            std::string::npos);
  EXPECT_NE(describe_expert_overlap(tight, config_with("never"))
                .find("parallel.overlap_experts is never"),
            std::string::npos);
}

}  // namespace
}  // namespace memphis
