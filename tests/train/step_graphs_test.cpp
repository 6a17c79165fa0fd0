// SPDX-License-Identifier: Apache-2.0
//
// Steps that are launched as graphs against the same steps enqueued, bit by bit, and how often the
// host and the device wait for each other.
#include "csrc/train/step_graphs.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/device_wait.h"
#include "csrc/core/error.h"
#include "csrc/train/trainer.h"
#include "kernels/op_profile.h"
#include "tests/support/error_text.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

// Every step has another learning rate and other bias corrections, and clips what it may.
const std::vector<std::string> kOverrides = {"run.device=cuda",
                                             "precision.compute=bf16",
                                             "model.vocab_size=264",
                                             "model.ffn_dim=16",
                                             "batch.sequence_length=16",
                                             "batch.micro_batch=1",
                                             "batch.global_batch=3",
                                             "optimizer.clip_norm=0.5",
                                             "schedule.steps=8",
                                             "schedule.warmup_steps=4",
                                             "metrics.validate_batches=1"};

std::vector<std::string> with(const std::vector<std::string>& more) {
  std::vector<std::string> all = kOverrides;
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::vector<std::byte> weights_of(Trainer& trainer) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < trainer.plan().parameters.segments.size(); ++i) {
    const TensorView view = trainer.parameters().segment_weights(i);
    const std::size_t begin = bytes.size();
    bytes.resize(begin + view.bytes());
    device_copy(bytes.data() + begin, view.data, view.bytes(), trainer.stream());
  }
  synchronize(trainer.stream());
  return bytes;
}

TEST(StepGraphChoice, IsRefusedWithTheReasonWhereItCannotBe) {
  const TemporaryDirectory directory;
  const auto refusal = [&](const std::vector<std::string>& overrides, Device device, int ranks) {
    const Config config = tiny_config(directory, overrides);
    return error_text<PreflightError>([&] { uses_graphs(config, device, ranks); });
  };
  EXPECT_EQ(refusal({"run.graph=required"}, Device::cpu, 1),
            "run.graph is required and the device is cpu (its work is done when a call returns, so "
            "that nothing is left to launch); set run.device to cuda, or set run.graph to auto");
  EXPECT_EQ(refusal({"run.graph=required"}, Device::cuda, 4),
            "run.graph is required and there are 4 ranks (a step waits for others where rows and "
            "gradients are exchanged); run one rank, or set run.graph to auto");
  EXPECT_EQ(refusal({"run.graph=required", "metrics.trace=true"}, Device::cuda, 1),
            "run.graph is required and metrics.trace is on (it times the phases of a step, and a "
            "graph has none); turn it off, or set run.graph to auto");
  const auto used = [&](const std::vector<std::string>& overrides, Device device, int ranks) {
    return uses_graphs(tiny_config(directory, overrides), device, ranks);
  };
  EXPECT_TRUE(used({"run.graph=required"}, Device::cuda, 1));
  EXPECT_TRUE(used({}, Device::cuda, 1));
  EXPECT_FALSE(used({}, Device::cpu, 1));
  EXPECT_FALSE(used({}, Device::cuda, 2));
  EXPECT_FALSE(used({"metrics.trace=true"}, Device::cuda, 1));
  EXPECT_FALSE(used({"run.graph=never"}, Device::cuda, 1));
  EXPECT_FALSE(used({"run.graph=never"}, Device::cpu, 4));
}

class StepGraph : public testing::Test {
 protected:
  void SetUp() override {
    if (!device_available(Device::cuda)) {
      GTEST_SKIP() << device_unavailable_reason();
    }
  }

  // The same steps with graphs and without. Validation, which has other scalars on the device, comes
  // between two of them. Returns which steps were launched as graphs.
  std::vector<bool> expect_equal(const std::vector<std::string>& more, int num_steps) {
    std::vector<std::string> overrides = with(more);
    overrides.emplace_back("run.graph=required");
    Trainer graphs(tiny_config(directory_, overrides), {});
    overrides.back() = "run.graph=never";
    Trainer enqueued(tiny_config(directory_, overrides), {});
    std::vector<bool> launched;
    bool clipped = false;
    for (int step = 1; step <= num_steps; ++step) {
      SCOPED_TRACE("step " + std::to_string(step));
      const StepResult actual = graphs.step();
      const StepResult wanted = enqueued.step();
      EXPECT_EQ(actual.loss, wanted.loss);
      EXPECT_EQ(actual.balance, wanted.balance);
      EXPECT_EQ(actual.router_z, wanted.router_z);
      EXPECT_EQ(actual.grad_norm, wanted.grad_norm);
      EXPECT_EQ(actual.expert_load_max, wanted.expert_load_max);
      EXPECT_TRUE(weights_of(graphs) == weights_of(enqueued)) << "weights differ";
      EXPECT_EQ(wanted.graph_nodes, 0);
      EXPECT_GE(actual.model_seconds, 0.0);
      EXPECT_GE(actual.optimizer_seconds, 0.0);
      launched.push_back(actual.graph_nodes > 0);
      clipped = clipped || wanted.grad_norm > 0.5;
      if (step == 3) {
        EXPECT_EQ(graphs.validation_loss(), enqueued.validation_loss());
      }
    }
    EXPECT_TRUE(clipped) << "the clip of the test bends no step";
    return launched;
  }

  const TemporaryDirectory directory_;
};

// Each is enqueued, recorded and launched, and launched; of the fifth there is no graph.
TEST_F(StepGraph, IsKeptForEachOfTheFirstFourKinds) {
  const OwnedStream stream(Device::cuda);
  const TestTensor counters({{8}, DType::i32}, Device::cuda, std::vector<double>(8));
  const TestTensor ones({{8}, DType::i32}, Device::cuda, std::vector<double>(8, 1.0));
  StepGraphs graphs(stream.view(), GraphChoice::automatic, "the test");
  int num_enqueued = 0;
  // What is done shows in the element of its kind.
  const auto run = [&](std::int64_t kind) {
    device_zero(counters.view().data, counters.view().bytes(), stream.view());
    const std::int64_t nodes = graphs.run({(kind & 1) != 0, (kind & 2) != 0, (kind & 4) != 0}, [&] {
      ++num_enqueued;
      device_copy(counters.view().as<std::int32_t>() + kind,
                  ones.view().data,
                  sizeof(std::int32_t),
                  stream.view());
    });
    std::vector<double> expected(8);
    expected[static_cast<std::size_t>(kind)] = 1;
    EXPECT_EQ(counters.values(stream.view()), expected) << "kind " << kind;
    return nodes;
  };
  for (std::int64_t kind = 0; kind < 5; ++kind) {
    EXPECT_EQ(run(kind), 0);
  }
  EXPECT_EQ(num_enqueued, 5);
  for (std::int64_t kind = 0; kind < 4; ++kind) {
    EXPECT_EQ(run(kind), 1);
  }
  EXPECT_EQ(run(4), 0);
  EXPECT_EQ(num_enqueued, 10);
  for (std::int64_t kind = 0; kind < 4; ++kind) {
    EXPECT_EQ(run(kind), 1);
  }
  EXPECT_EQ(run(4), 0);
  EXPECT_EQ(num_enqueued, 11);
}

TEST_F(StepGraph, HasTheBitsOfTheStep) {
  EXPECT_EQ(expect_equal({}, 5), (std::vector<bool>{false, true, true, true, true}));
}

TEST_F(StepGraph, HasThemWhereLayersComputeAgainAndHeadsAreCut) {
  EXPECT_EQ(expect_equal({"model.num_layers=1", "memory.recompute=block", "memory.head_rows=8"}, 3),
            (std::vector<bool>{false, true, true}));
}

// A letter that comes in some micro-batches stands for padding: steps differ in the calls that they
// are made of, and each kind has a graph of its own once it has come twice.
TEST_F(StepGraph, IsOfTheStepsWithPaddingWhereItsOwnIs) {
  const std::vector<bool> launched = expect_equal({"model.num_layers=1", "model.pad_id=106"}, 6);
  const auto num_launched = std::count(launched.begin(), launched.end(), true);
  EXPECT_LT(num_launched, 5) << "there is one kind of step in the test";
  EXPECT_GT(num_launched, 0) << "no kind comes twice";
}

// Where each step is read before the next one is prepared, the GPU runs dry once a step. The host waits
// for it that once: for what the step reports.
TEST_F(StepGraph, OrNotLetsTheHostWaitOnceAStep) {
  for (const std::string graph : {"never", "required"}) {
    Trainer trainer(tiny_config(directory_, with({"model.num_layers=1", "run.graph=" + graph})),
                    {});
    trainer.step();
    trainer.step();
    constexpr std::uint64_t kSteps = 2;
    const std::uint64_t stalls = stall_count();
    const std::uint64_t waits = host_wait_count();
    const std::uint64_t enqueued = enqueued_count();
    const std::uint64_t allocations = allocation_count();
    for (std::uint64_t i = 0; i < kSteps; ++i) {
      trainer.step();
    }
    EXPECT_EQ(stall_count() - stalls, kSteps) << graph;
    EXPECT_EQ(host_wait_count() - waits, kSteps) << graph;
    EXPECT_EQ(allocation_count() - allocations, 0U) << graph;
    if (graph == "required") {
      EXPECT_EQ(enqueued_count() - enqueued, 2 * kSteps) << "the gradients, and the update";
    } else {
      EXPECT_GT(enqueued_count() - enqueued, 100 * kSteps);
    }
  }
}

// With and without graphs, a run that reads a step while the next one is under way ends with the
// weights of one that reads each step at once.
TEST_F(StepGraph, OrNotHasTheBitsWhereAStepIsReadLate) {
  std::vector<std::vector<std::byte>> weights;
  for (const char* const graph : {"never", "required"}) {
    for (const char* const every : {"1", "1000"}) {
      Trainer trainer(
          tiny_config(
              directory_,
              with({"model.num_layers=1",
                    std::string("run.graph=") + graph,
                    std::string("metrics.every=") + every,
                    "run.dir=" + (directory_.path() / (std::string(graph) + every)).string(),
                    "checkpoint.every=0",
                    "metrics.validate_every=0"})),
          {});
      trainer.run();
      weights.push_back(weights_of(trainer));
    }
  }
  for (std::size_t i = 1; i < weights.size(); ++i) {
    EXPECT_TRUE(weights[i] == weights[0]) << i;
  }
}

// Who times each op gets each op.
TEST_F(StepGraph, IsNotUsedUnderAProfile) {
  Trainer trainer(tiny_config(directory_, with({"model.num_layers=1"})), {});
  trainer.step();
  EXPECT_GT(trainer.step().graph_nodes, 0);
  {
    const kernels::OpProfile profile(trainer.stream(), 10000);
    EXPECT_EQ(trainer.step().graph_nodes, 0);
    EXPECT_FALSE(profile.totals().empty());
  }
  EXPECT_GT(trainer.step().graph_nodes, 0);
}

}  // namespace
}  // namespace memphis::test
