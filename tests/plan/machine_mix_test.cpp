// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/machine_mix.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

const std::vector<std::filesystem::path> kFolders = {"configs/machines"};

Machine h100() {
  return load_machine(find_machine("h100_sxm", kFolders));
}
Machine h200() {
  return load_machine(find_machine("h200_sxm", kFolders));
}

TEST(MachineParts, AreNamedWithTheirRanks) {
  const std::vector<MachinePart> one = parse_machine_parts("h100_sxm", 512, kFolders);
  ASSERT_EQ(one.size(), 1U);
  EXPECT_EQ(one[0].num_ranks, 512);
  EXPECT_EQ(one[0].machine, h100());
  EXPECT_EQ(parse_machine_parts("configs/machines/h100_sxm.yaml:512", 512, {})[0].machine, h100());
  const std::vector<MachinePart> two =
      parse_machine_parts("h100_sxm:150000,h200_sxm:50000", 200000, kFolders);
  ASSERT_EQ(two.size(), 2U);
  EXPECT_EQ(two[0].num_ranks, 150000);
  EXPECT_EQ(two[1].machine, h200());
}

TEST(MachineParts, AreRefusedWithTheReason) {
  const auto refusal = [](const std::string& text, std::int64_t num_ranks) {
    return test::error_text<ConfigError>([&] { parse_machine_parts(text, num_ranks, kFolders); });
  };
  EXPECT_EQ(
      refusal("h100_sxm:100,h200_sxm:50", 200),
      "--machine is h100_sxm:100,h200_sxm:50 and has 150 ranks, and --ranks is 200 (each rank "
      "is on one machine); make them agree");
  EXPECT_EQ(
      refusal("h100_sxm:100,h200_sxm", 200),
      "--machine is h100_sxm:100,h200_sxm and gives h200_sxm no ranks (of several machines each "
      "has some); write NAME, or NAME:RANKS,NAME:RANKS");
  EXPECT_NE(refusal("h100_sxm:100,", 100).find("gives an empty name no ranks"), std::string::npos);
  EXPECT_NE(refusal("h100_sxm:0", 8).find("there is no machine \"h100_sxm:0\""), std::string::npos);
  EXPECT_NE(refusal("h300:8", 8).find("there is no machine \"h300\""), std::string::npos);
  MachinePart small = {h100(), 4};
  small.machine.node.ranks = 4;
  EXPECT_NE(test::error_text<ConfigError>([&] {
              machine_of_all({{h100(), 8}, small});
            }).find("8 ranks in a node"),
            std::string::npos);
}

// Of each kind of rate the least, wherever it comes from, and in either order.
TEST(MachineOfAll, WaitsForWhoeverIsSlowest) {
  Machine slow_memory = h100();
  slow_memory.name = "slow memory";
  slow_memory.copy_share = 0.5;
  slow_memory.pod.latency_us *= 3;
  slow_memory.rank_hours_between_failures /= 4;
  slow_memory.busy_watts += 100;
  slow_memory.peak_bf16_tflops += 400;
  slow_memory.restart_seconds += 7;
  slow_memory.cluster.ranks *= 2;
  Machine slow_products = h100();
  slow_products.large_bf16_tflops /= 2;
  slow_products.node.gb_per_second /= 2;
  slow_products.pod.rows_gb_per_second /= 2;
  slow_products.memory_gib -= 10;
  slow_products.save_gb_per_second /= 2;
  slow_products.multiprocessors = 66;
  slow_products.measured_gflop = {1};
  slow_products.measured_per_mille = {500};
  const MachinePart a = {slow_memory, 30};
  const MachinePart b = {slow_products, 10};
  for (const std::vector<MachinePart>& parts : {std::vector{a, b}, std::vector{b, a}}) {
    const Machine all = machine_of_all(parts);
    EXPECT_EQ(all.bytes_per_second(), slow_memory.bytes_per_second());
    EXPECT_EQ(all.pod.latency_us, slow_memory.pod.latency_us);
    EXPECT_EQ(all.large_bf16_tflops, slow_products.large_bf16_tflops);
    EXPECT_EQ(all.node.gb_per_second, slow_products.node.gb_per_second);
    EXPECT_EQ(all.pod.rows_gb_per_second, slow_products.pod.rows_gb_per_second);
    EXPECT_EQ(all.memory_gib, slow_products.memory_gib);
    EXPECT_EQ(all.save_gb_per_second, slow_products.save_gb_per_second);
    EXPECT_EQ(all.multiprocessors, 66);
    EXPECT_EQ(all.measured_per_mille, slow_products.measured_per_mille);
    EXPECT_EQ(all.restart_seconds, slow_memory.restart_seconds);
    EXPECT_EQ(all.cluster.ranks, slow_memory.cluster.ranks);
    EXPECT_NEAR(all.peak_bf16_tflops, h100().peak_bf16_tflops + 300, 1e-9);
    EXPECT_NEAR(all.busy_watts, h100().busy_watts + 75, 1e-9);
    // 30 ranks fail four times as often: 130 failures where 40 would be.
    EXPECT_NEAR(h100().rank_hours_between_failures / all.rank_hours_between_failures, 3.25, 1e-9);
  }
  EXPECT_EQ(machine_of_all({a}), slow_memory);
}

// Twice the speed does twice the work: 10 ranks of 1 s and 10 of 2 s do what 15 of 1 s would.
TEST(MachineParts, WithProportionalSharesEndTogether) {
  EXPECT_NEAR(seconds_of_proportional_shares({{h100(), 10}, {h200(), 10}}, {1, 2}), 4.0 / 3, 1e-12);
  EXPECT_NEAR(seconds_of_proportional_shares({{h100(), 30}, {h200(), 10}}, {3, 3}), 3, 1e-12);
}

}  // namespace
}  // namespace memphis
