// SPDX-License-Identifier: Apache-2.0
//
// What a plan says of groups is what a rank makes: the same groups, with as many channels, and on
// the CPU as many bytes as their communicators keep, in every layout and in pipelines. What it says
// of host memory beside the device is what the ranks take.
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/host_communicator.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/together.h"
#include "csrc/core/device.h"
#include "csrc/plan/communication.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"
#include "tests/support/world_decorator.h"

namespace memphis::test {
namespace {

struct Made {
  std::string name;
  std::vector<int> ranks;
  std::int64_t num_channels;

  bool operator==(const Made&) const = default;
};

// One rank of many, whose groups are written down and have no other rank.
class RecordingWorld final : public WorldDecorator {
 public:
  RecordingWorld(World& real, int rank, int size)
      : WorldDecorator(real), rank_(rank), size_(size) {}

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override {
    if (ranks.size() > 1 && !axis.ends_with("_host")) {
      made.push_back({axis, {ranks.begin(), ranks.end()}, num_channels});
    }
    return make_solo(device);
  }

  std::vector<Made> made;

 private:
  int rank_;
  int size_;
};

TEST(PlannedGroups, AreThoseThatARankMakes) {
  const TemporaryDirectory directory;
  const std::unique_ptr<World> world = make_solo_world();
  for (const std::vector<std::string>& overrides :
       {std::vector<std::string>{},
        {"parallel.tensor=4", "parallel.expert=4", "parallel.expert_tensor=2"},
        {"parallel.pipeline=2", "parallel.tensor=2", "model.tie_embeddings=false"},
        {"parallel.pipeline=4", "parallel.expert=2"},
        {"parallel.context=4", "parallel.expert=2"},
        {"parallel.context=2", "parallel.tensor=4", "parallel.pipeline=2"},
        {"parallel.pipeline=2", "parallel.schedule=interleaved", "parallel.chunks=2"},
        {"parallel.pipeline=2", "parallel.schedule=zbv"}}) {
    constexpr int kNumRanks = 16;
    std::vector<std::string> all = overrides;
    all.insert(all.end(), {"model.num_layers=4", "batch.micro_batch=1", "batch.global_batch=64"});
    const Config config = parse_config(tiny_yaml(directory), "tiny", all, Check::text, kNumRanks);
    const Mesh mesh(config.parallel, kNumRanks);
    for (int rank = 0; rank < kNumRanks; ++rank) {
      RecordingWorld recording(*world, rank, kNumRanks);
      const Groups groups(recording, mesh, config.model, Device::cpu, make_solo(Device::cpu));
      std::vector<Made> planned;
      for (const PlannedGroup& group : planned_groups(config.model, mesh, rank)) {
        planned.push_back({group.name, group.ranks.ranks(), group.num_channels});
        EXPECT_EQ(group.ranks.ranks()[static_cast<std::size_t>(group.index)], rank);
      }
      EXPECT_EQ(recording.made, planned) << "rank " << rank << " of " << overrides.size();
    }
  }
  world->close();
}

std::size_t kept_by(const Communicator& group) {
  const auto* const host = dynamic_cast<const HostCommunicator*>(&group);
  return host == nullptr ? 0 : host->buffer_bytes();
}

void expect_as_planned(const Layout& layout,
                       const std::string& compute,
                       const std::vector<std::string>& more = {}) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  std::vector<std::string> overrides = run_overrides(layout, compute);
  overrides.insert(overrides.end(), more.begin(), more.end());
  const std::uint64_t pinned_before = pinned_bytes();
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    RankRun run(world, yaml, overrides);
    auto pinned = static_cast<std::int64_t>(run.trainer().plan().memory.host.standing_bytes());
    sum_over_ranks(run.all(), {&pinned, 1}, "test.pinned");
    if (world.rank() == 0) {
      EXPECT_EQ(pinned_bytes() - pinned_before, static_cast<std::uint64_t>(pinned)) << layout.name;
    }
    run.trainer().step();
    run.trainer().step();
    run.trainer().validation_loss();
    const Groups& groups = run.trainer().groups();
    std::size_t planned = 0;
    const auto planned_of = [&](std::string_view name) {
      std::size_t bytes = 0;
      for (const CommunicationPlan::Group& each : run.trainer().plan().communication.groups) {
        bytes += each.group.name == name ? each.bytes : 0;
      }
      planned += bytes;
      return bytes;
    };
    const auto expect = [&](std::string_view name, const Communicator& group) {
      EXPECT_EQ(kept_by(group), planned_of(name))
          << layout.name << ", rank " << world.rank() << ", " << name;
    };
    expect(name_of(Axis::tensor), groups.tensor());
    expect(name_of(Axis::context), groups.context());
    if (run.mesh().degree(Axis::tensor) > 1 && run.mesh().degree(Axis::context) > 1) {
      expect(name_of(Axis::sequence_ranks), groups.sequence_ranks());
    }
    expect(kKvSharers, groups.kv_sharers());
    expect(name_of(Axis::data_context), groups.data_context());
    expect(name_of(Axis::expert_ranks), groups.expert_ranks());
    expect(name_of(Axis::expert_data), groups.expert_data());
    expect(name_of(Axis::stage_ranks), groups.stage_ranks());
    expect(name_of(Axis::pipeline), groups.pipeline());
    expect(kTiedEmbedding, groups.tied());
    EXPECT_EQ(planned, run.trainer().plan().memory.communication_bytes)
        << "what messages go through keeps nothing";
  });
}

TEST(CommunicationMemory, IsWhatThePlanSays) {
  for (const Layout& layout : layouts()) {
    expect_as_planned(layout, "bf16");
  }
  expect_as_planned(layout_named("data2"), "f32", {"parallel.zero=0"});
  expect_as_planned(layout_named("data2"), "f64", {"parallel.zero=2"});
  for (const char* exchange : {"gather", "ring", "all_to_all"}) {
    const std::vector<std::string> more = {std::string("parallel.context_exchange=") + exchange,
                                           "model.num_kv_heads=4",
                                           "metrics.sample_every=1"};
    expect_as_planned(in_context(layout_named("data2_expert2"), 2), "bf16", more);
    expect_as_planned(in_context(layout_named("tensor2"), 2), "f32", more);
  }
}

TEST(CommunicationMemory, OfAPipelineIsWhatThePlansSay) {
  for (const char* tied : {"model.tie_embeddings=true", "model.tie_embeddings=false"}) {
    expect_as_planned(piped("piped", layout_named("data2"), 2, {}), "bf16", {tied});
    // Ranks exchange rows here, and several micro-batches are under way at a time.
    expect_as_planned(piped("piped", layout("expert2", 2, 1, 2, 1, {"batch.micro_batch=1"}), 2, {}),
                      "f32",
                      {tied});
  }
}

}  // namespace
}  // namespace memphis::test
