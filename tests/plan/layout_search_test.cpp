// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/layout_search.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/config/load.h"
#include "csrc/plan/mesh.h"
#include "csrc/plan/run_work.h"

namespace memphis {
namespace {

// Of a billion parameters: on 16 ranks of 9 GiB some layouts fit, and the fastest do not.
constexpr const char* kModel = R"(
model: {vocab_size: 32768, num_layers: 16, d_model: 1024, num_heads: 16, num_kv_heads: 4,
        ffn_dim: 2816, num_experts: 8}
run: {dir: runs/x, device: cuda}
batch: {sequence_length: 2048, micro_batch: 1, global_batch: 64}
schedule: {steps: 1}
metrics: {sample_every: 0}
)";
constexpr std::int64_t kNumRanks = 16;

Config config_of(const std::vector<std::string>& overrides = {}) {
  return parse_config(kModel, "config.yaml", overrides, Check::text, kNumRanks);
}

DeviceRoom room_of(double gib) {
  return {.device = Device::cuda,
          .library_bytes = 0,
          .budget_bytes = static_cast<std::size_t>(gib * (1 << 30))};
}

const Machine& h100() {
  static const Machine machine = load_machine("configs/machines/h100_sxm.yaml");
  return machine;
}

struct Planned {
  std::size_t bytes = 0;
  double seconds = 0;
};
Planned planned(const Config& config, const DeviceRoom& room, std::int64_t num_ranks) {
  const Mesh mesh(config.parallel, num_ranks);
  const StagePlans plans = plan_all_stages(config, DType::bf16, room, mesh);
  return {*std::max_element(plans.bytes.begin(), plans.bytes.end()),
          time_of(config, DType::bf16, mesh, plans, h100()).seconds};
}

TEST(LayoutSearch, FindsNothingWorseThanALayoutThatFits) {
  const DeviceRoom room = room_of(9);
  const LayoutSearch search = search_layouts(config_of(), DType::bf16, room, h100(), kNumRanks, 5);
  ASSERT_EQ(search.best.size(), 5U);
  EXPECT_GT(search.num_tried, search.num_planned);
  std::set<std::string> seen;
  for (const TimedConfig& found : search.best) {
    const Planned again = planned(found.config, room, kNumRanks);
    EXPECT_EQ(found.bytes, again.bytes);
    EXPECT_LE(found.bytes, room.budget_bytes);
    EXPECT_EQ(found.time.seconds, again.seconds);
    EXPECT_TRUE(seen.insert(to_yaml(found.config)).second);
    // The overrides make it of what was given.
    EXPECT_EQ(config_of(found.overrides), found.config);
  }
  EXPECT_TRUE(std::is_sorted(
      search.best.begin(), search.best.end(), [](const TimedConfig& a, const TimedConfig& b) {
        return a.time.seconds < b.time.seconds;
      }));
  int fitting = 0;
  for (const std::vector<std::string>& layout : std::vector<std::vector<std::string>>{
           {},
           {"parallel.tensor=2"},
           {"parallel.expert=8"},
           {"parallel.expert=4", "batch.micro_batch=2"},
           {"parallel.expert=8", "parallel.expert_tensor=2", "parallel.tensor=2"},
           {"parallel.pipeline=2", "parallel.expert=8"},
           {"parallel.pipeline=4", "parallel.schedule=zb-h1"},
           {"parallel.pipeline=2", "parallel.schedule=interleaved", "parallel.chunks=4"}}) {
    const Config config = config_of(layout);
    const Planned other = planned(config, room, kNumRanks);
    if (other.bytes <= room.budget_bytes) {
      ++fitting;
      EXPECT_GE(other.seconds, search.best.front().time.seconds) << testing::PrintToString(layout);
    }
  }
  EXPECT_GE(fitting, 3);
}

// Whose chunks are no power of two.
TEST(LayoutSearch, FindsNothingWorseThanWhatIsGiven) {
  const DeviceRoom room = room_of(9);
  const Config config = config_of({"model.num_layers=12",
                                   "parallel.pipeline=4",
                                   "parallel.schedule=interleaved",
                                   "parallel.chunks=3"});
  const LayoutSearch search = search_layouts(config, DType::bf16, room, h100(), kNumRanks, 1000);
  const auto is_given = [&](const TimedConfig& found) {
    return found.config.parallel == config.parallel && found.config.batch == config.batch;
  };
  EXPECT_TRUE(std::any_of(search.best.begin(), search.best.end(), is_given));
}

TEST(LayoutSearch, FindsNothingWhereNothingFits) {
  const LayoutSearch search =
      search_layouts(config_of(), DType::bf16, room_of(0.5), h100(), kNumRanks);
  EXPECT_TRUE(search.best.empty());
}

TEST(LayoutSearch, ChangesAreFasterAndFit) {
  const DeviceRoom room = room_of(16);
  const Config config = config_of({"parallel.tensor=16", "parallel.expert=1"});
  const double now = planned(config, room, kNumRanks).seconds;
  const std::vector<TimedConfig> changes =
      faster_changes(config, DType::bf16, room, h100(), kNumRanks, now, 3);
  ASSERT_EQ(changes.size(), 3U);
  for (const TimedConfig& change : changes) {
    EXPECT_LT(change.time.seconds, now);
    EXPECT_LE(change.bytes, room.budget_bytes);
    EXPECT_EQ(change.time.seconds, planned(change.config, room, kNumRanks).seconds);
  }
  // Tensor 16 reaches beyond a node.
  const auto takes_less_tensor = [](const TimedConfig& change) {
    return change.config.parallel.tensor == 8;
  };
  EXPECT_TRUE(std::any_of(changes.begin(), changes.end(), takes_less_tensor));
  EXPECT_TRUE(
      faster_changes(changes.front().config, DType::bf16, room, h100(), kNumRanks, 0, 3).empty());
}

// With as much room as it takes, and nothing computed again.
TEST(LayoutSearch, ChangesNeedNoMoreRoomThanThereIs) {
  const Config config =
      config_of({"parallel.tensor=8", "parallel.expert=8", "memory.recompute=none"});
  const Planned now = planned(config, room_of(64), kNumRanks);
  DeviceRoom room = room_of(64);
  room.budget_bytes = now.bytes;
  for (const TimedConfig& change :
       faster_changes(config, DType::bf16, room, h100(), kNumRanks, now.seconds, 10)) {
    EXPECT_LE(change.bytes, now.bytes) << testing::PrintToString(change.overrides);
  }
  EXPECT_LT(
      faster_changes(config, DType::bf16, room, h100(), kNumRanks, now.seconds, 10).size(),
      faster_changes(config, DType::bf16, room_of(64), h100(), kNumRanks, now.seconds, 10).size());
}

// The layout that NVIDIA published for Grok-1 on 512 H100 cuts sequences over two ranks, which no
// config of memphis can: with tensor 8 a rank has as few tokens, and exchanges more beside products.
TEST(LayoutSearch, IsNearThePublishedLayoutOfGrok1) {
  const Config config = parse_config(
      "model: {preset: grok-1}\n"
      "run: {dir: runs/x, device: cuda}\n"
      "parallel: {expert_buffer: 1.5}\n"
      "batch: {sequence_length: 8192, micro_batch: 1, global_batch: 1024}\n"
      "schedule: {steps: 1}\n"
      "metrics: {sample_every: 0}\n",
      "config.yaml",
      {},
      Check::text,
      512);
  const LayoutSearch search = search_layouts(config, DType::bf16, room_of(79.1), h100(), 512, 1);
  ASSERT_EQ(search.best.size(), 1U);
  RunDescription published = describe_run(config, DType::bf16, 512);
  published.parallel.pipeline = 8;
  published.parallel.schedule = ScheduleKind::interleaved;
  published.parallel.chunks = 8;
  published.parallel.tensor = 4;
  published.parallel.context = 2;
  published.parallel.expert = 8;
  published.parallel.data = 8;
  const double ratio =
      search.best.front().time.seconds / step_time(run_work(published), h100()).seconds;
  EXPECT_GT(ratio, 1);
  EXPECT_LT(ratio, 1.1);
}

}  // namespace
}  // namespace memphis
