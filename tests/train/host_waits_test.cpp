// SPDX-License-Identifier: Apache-2.0
//
// How often the host of a rank on Device::cuda waits for its device in a step, under mpirun. What one
// rank does is in step_graphs_test.cpp.
#include <cstdint>
#include <string>

#include <gtest/gtest.h>

#include "csrc/comm/gpu_of_rank.h"
#include "csrc/comm/together.h"
#include "csrc/core/device.h"
#include "csrc/core/device_wait.h"
#include "tests/support/layout_run.h"
#include "tests/support/ranks.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

constexpr int kNumLayers = 2;
constexpr int kMicroBatches = 2;  // of a rank

struct Case {
  Layout layout;
  std::uint64_t waits;  // of a step
};

class HostWaits : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::string reason = why_no_gpu_ranks();
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
    World& world = process_world();
    if (world.size() != 2) {
      GTEST_SKIP() << "two ranks on GPUs are for mpirun: host_waits_test_ranks_2";
    }
    use_own_gpu(*create_group_of_all(world), world.local_rank(), Device::cuda);
  }

  // Of the third step.
  static std::uint64_t waits_of_step(const Layout& layout) {
    const TemporaryDirectory directory;
    Layout small = layout;
    for (const std::string& override : {std::string("run.device=cuda"),
                                        "model.num_layers=" + std::to_string(kNumLayers),
                                        std::string("model.vocab_size=264"),
                                        std::string("model.d_model=16"),
                                        std::string("model.num_heads=2"),
                                        std::string("model.ffn_dim=16"),
                                        std::string("batch.sequence_length=8"),
                                        std::string("batch.micro_batch=1"),
                                        "batch.global_batch=" + std::to_string(2 * kMicroBatches),
                                        std::string("metrics.validate_every=0"),
                                        std::string("metrics.validate_batches=1")}) {
      small.overrides.push_back(override);
    }
    std::uint64_t waits = 0;
    on_ranks(Ranks::processes, layout.num_ranks, [&](World& world) {
      RankRun run(world, tiny_yaml(directory), run_overrides(small, "f32"));
      run.trainer().step();
      run.trainer().step();
      const std::uint64_t before = host_wait_count();
      run.trainer().step();
      waits = host_wait_count() - before;
    });
    return waits;
  }
};

TEST_P(HostWaits, OfAStepAreSoMany) {
  EXPECT_EQ(waits_of_step(GetParam().layout), GetParam().waits);
}

// One for what the step reports. Where rows are exchanged, one more for the counts, which give a
// collective its sizes, of each layer of a micro-batch, and none in the backward pass.
INSTANTIATE_TEST_SUITE_P(
    processes,
    HostWaits,
    testing::Values(Case{layout("data2", 2, 1, 1, 1), 1},
                    Case{layout("data2_expert2", 2, 1, 2, 1), 1 + kNumLayers* kMicroBatches},
                    Case{layout("data2_split_expert", 2, 1, 1, 2), 1 + kNumLayers* kMicroBatches}),
    [](const auto& tested) { return tested.param.layout.name; });

}  // namespace
}  // namespace memphis::test
