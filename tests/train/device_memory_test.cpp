// SPDX-License-Identifier: Apache-2.0
//
// How much of a device that has so much memory a run may take, under mpirun on the simulated one.
// In a pipeline NCCL takes its buffers as groups are made, before there is a plan: they count once.
#include <cstddef>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/gpu_of_rank.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/simt_memory.h"
#include "tests/support/error_text.h"
#include "tests/support/layout_run.h"
#include "tests/support/ranks.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

// Of a schedule.
class DeviceMemory : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string reason = why_no_gpu_ranks();
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
    if (process_world().size() != 2) {
      GTEST_SKIP() << "two ranks on GPUs are for mpirun: device_memory_test_ranks_2";
    }
    use_own_gpu(*create_group_of_all(process_world()), process_world().local_rank(), Device::cuda);
  }
  void TearDown() override { simt_memory::set_capacity(0); }

  RankRun run(const char* recompute) const {
    return {process_world(),
            tiny_yaml(directory_),
            {"run.device=cuda",
             "parallel.pipeline=2",
             std::string("parallel.schedule=") + GetParam(),
             std::string("memory.recompute=") + recompute,
             "model.num_layers=4",
             "model.vocab_size=264",
             "model.d_model=16",
             "model.num_heads=2",
             "model.ffn_dim=16",
             "batch.sequence_length=8",
             "batch.micro_batch=1",
             "batch.global_batch=2",
             "metrics.validate_every=0",
             "metrics.validate_batches=1"}};
  }
  // What a run may take of the device.
  static void leave(std::size_t bytes) {
    simt_memory::set_capacity(simt_memory::used_bytes() + bytes);
  }

  TemporaryDirectory directory_;
};

TEST_P(DeviceMemory, OfAPipelineIsEnoughWhereItIsWhatThePlanSays) {
  TrainingPlan unlimited;
  {
    RankRun free = run("none");
    unlimited = free.trainer().plan();
  }
  const std::size_t needed = unlimited.memory.total_bytes();
  ASSERT_GT(unlimited.memory.communication_bytes, needed / 2) << "counted twice it would not fit";
  leave(needed);
  {
    RankRun fits = run("none");
    fits.trainer().step();
  }
  // On one rank, of which the other one hears.
  leave(needed - (process_world().rank() == 1 ? 1 : 0));
  const std::string text = error_text<Error>([&] { run("none"); });
  EXPECT_NE(text.find(process_world().rank() == 1 ? "the GPU has " : "rank 1"), std::string::npos)
      << text;
}

// A twentieth more, which is not planned with.
TEST_P(DeviceMemory, OfAPipelineIsNotSavedWhereThereIsEnough) {
  TrainingPlan unlimited;
  {
    RankRun free = run("auto");
    unlimited = free.trainer().plan();
  }
  leave(unlimited.memory.total_bytes() / 19 * 20 + 20);
  RankRun fits = run("auto");
  EXPECT_EQ(fits.trainer().plan().recompute_option, unlimited.recompute_option);
}

// Of the second, each rank has two stages.
INSTANTIATE_TEST_SUITE_P(processes, DeviceMemory, testing::Values("1f1b", "zbv"));

}  // namespace
}  // namespace memphis::test
