// SPDX-License-Identifier: Apache-2.0
//
// Steps on a device that has no memory left for their graphs, on the simulated one.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/device.h"
#include "csrc/core/error.h"
#include "csrc/core/simt_memory.h"
#include "csrc/train/step_graphs.h"
#include "csrc/train/trainer.h"
#include "tests/support/error_text.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

class GraphMemory : public testing::Test {
 protected:
  void TearDown() override { have_room(); }

  static void have_no_room() { simt_memory::set_capacity(simt_memory::used_bytes()); }
  static void have_room() { simt_memory::set_capacity(0); }
};

TEST_F(GraphMemory, ThatIsMissingHasStepsEnqueued) {
  const OwnedStream stream(Device::cuda);
  const TestTensor target({{1}, DType::i32}, Device::cuda, std::vector<double>{0});
  const TestTensor source({{1}, DType::i32}, Device::cuda, std::vector<double>{7});
  StepGraphs graphs(stream.view(), GraphChoice::automatic, "the test");
  int num_enqueued = 0;
  const auto run = [&](bool padding) {
    device_zero(target.view().data, target.view().bytes(), stream.view());
    const std::int64_t nodes = graphs.run({padding}, [&] {
      ++num_enqueued;
      device_copy(target.view().data, source.view().data, target.view().bytes(), stream.view());
    });
    EXPECT_EQ(target.values(stream.view()), std::vector<double>{7});
    return nodes;
  };
  EXPECT_EQ(run(false), 0);
  EXPECT_EQ(run(false), 1);
  EXPECT_EQ(run(true), 0);
  EXPECT_EQ(num_enqueued, 3);  // one of them recorded
  have_no_room();
  EXPECT_EQ(run(true), 0);
  EXPECT_EQ(num_enqueued, 5) << "it is recorded, and then enqueued";
  // What found no room once is not tried each step, which would enqueue each twice.
  have_room();
  EXPECT_EQ(run(true), 0);
  EXPECT_EQ(num_enqueued, 6);
  EXPECT_EQ(run(false), 1) << "the graph that there is goes on";
  EXPECT_EQ(num_enqueued, 6);
}

TEST_F(GraphMemory, ThatIsMissingEndsARunThatRequiresGraphs) {
  const OwnedStream stream(Device::cuda);
  const TestTensor target({{1}, DType::i32}, Device::cuda, std::vector<double>{0});
  StepGraphs graphs(stream.view(), GraphChoice::required, "the test");
  const auto run = [&] {
    graphs.run({}, [&] { device_zero(target.view().data, target.view().bytes(), stream.view()); });
  };
  run();
  have_no_room();
  EXPECT_EQ(error_text<PreflightError>(run),
            "the GPU has no memory for the graph of the test, and run.graph is required; set it to "
            "auto (the run goes on from its last checkpoint), or use a smaller batch.micro_batch");
}

TEST_F(GraphMemory, OrNotStepsHaveTheSameBits) {
  const TemporaryDirectory directory;
  const auto losses = [&](bool room) {
    have_room();
    Trainer trainer(tiny_config(directory,
                                {"run.device=cuda",
                                 "precision.compute=bf16",
                                 "model.num_layers=1",
                                 "model.vocab_size=264",
                                 "model.ffn_dim=16",
                                 "batch.sequence_length=16",
                                 "batch.micro_batch=1",
                                 "batch.global_batch=2"}),
                    {});
    std::vector<double> found;
    for (int i = 0; i < 4; ++i) {
      const StepResult result = trainer.step();
      EXPECT_EQ(result.graph_nodes > 0, room && i > 0) << "step " << i + 1;
      found.push_back(result.loss);
      found.push_back(result.grad_norm);
      if (!room) {
        have_no_room();
      }
    }
    return found;
  };
  EXPECT_EQ(losses(false), losses(true));
}

}  // namespace
}  // namespace memphis::test
