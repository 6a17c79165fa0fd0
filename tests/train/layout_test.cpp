// SPDX-License-Identifier: Apache-2.0
//
// A layout changes nothing but speed. Each case is a training run on so many ranks, held to the
// same run on one rank:
//
//   weights of step 0       the same bits
//   gradient of step 1      every parameter within twice the error that one rank's f32 has
//   losses of the steps     in f32 within twice the error that one rank's have; within 1e-9 in f64,
//                           where no rounding is large enough to send a token to another expert
//   the same layout again   the same bits, whether its ranks are threads or processes
//   samples                 the same set, in the same order of micro-batches
//   checkpoints             every element once, whatever layout wrote it and whichever reads it
//
// Ranks are threads; under mpirun, of the layouts with as many ranks as the job, its processes.
// Where a run departs from one rank the failure names the first op that does: see departure.h.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include "csrc/checkpoint/model_state.h"
#include "csrc/comm/together.h"
#include "csrc/core/error.h"
#include "csrc/core/log.h"
#include "tests/support/departure.h"
#include "tests/support/layout_run.h"
#include "tests/support/ranks.h"
#include "tests/support/tiny_run.h"
#include "tests/support/tolerance.h"

namespace memphis::test {
namespace {

constexpr int kNumSteps = 18;

struct Case {
  Layout layout;
  Ranks ranks;
};

void PrintTo(const Case& tested, std::ostream* out) {
  *out << tested.layout.name;
}

const Outcome& reference(const std::string& compute) {
  static std::map<std::string, Outcome> outcomes;
  const auto found = outcomes.find(compute);
  return found != outcomes.end()
             ? found->second
             : outcomes
                   .emplace(compute, train(layouts().front(), Ranks::threads, compute, kNumSteps))
                   .first->second;
}

// Runs of one rank: sums over micro-batches of several sizes, and weights that differ by a
// rounding. Each is as good a result in f32.
const std::vector<Outcome>& runs_of_one_rank_in_f32() {
  static const std::vector<Outcome> runs = [] {
    std::vector<Outcome> result;
    for (const char* micro_batch : {"1", "2", "4", "8", "16"}) {
      for (const double nudge : {0.0, 1.0, -1.0}) {
        const Layout one =
            layout("one", 1, 1, 1, 1, {std::string("batch.micro_batch=") + micro_batch});
        result.push_back(train(one, Ranks::threads, "f32", kNumSteps, nudge));
      }
    }
    return result;
  }();
  return runs;
}

class LayoutTest : public testing::TestWithParam<Case> {
 protected:
  static const Layout& layout() { return GetParam().layout; }

  // Of processes the first compares, and alone has something to compare with.
  static bool compares() {
    return GetParam().ranks == Ranks::threads || process_world().rank() == 0;
  }

  static Outcome run(const std::string& compute, int num_steps) {
    return train(layout(), GetParam().ranks, compute, num_steps);
  }

  // What failed is followed to the op that it begins with, which takes all ranks.
  void TearDown() override {
    if (!fails_on_any_rank(GetParam().ranks, HasFailure())) {
      return;
    }
    const FirstStep actual = first_step(layout(), GetParam().ranks);
    if (compares()) {
      Layout one = layouts().front();
      one.overrides.push_back("batch.micro_batch=16");  // all tokens, whichever the layout has
      ADD_FAILURE() << describe_departure(first_step(one, Ranks::threads), actual);
    }
  }
};

TEST_P(LayoutTest, TrainsAsOneRankDoesInF32) {
  const Outcome actual = run("f32", kNumSteps);
  if (!compares()) {
    return;
  }
  const Outcome& one = reference("f32");
  const Outcome& exact = reference("f64");
  expect_same_bits(actual.initial, one.initial, "at step 0,");
  const std::vector<Outcome>& ones = runs_of_one_rank_in_f32();
  for (const auto& [name, gradient] : exact.gradient) {
    Reference reference{.exact = gradient, .naive = {}};
    for (const Outcome& run : ones) {
      reference.naive.push_back(run.gradient.at(name));
    }
    const auto row = static_cast<std::int64_t>(gradient.size());
    EXPECT_TRUE(close_to(actual.gradient.at(name), reference, DType::f32, row)) << name;
  }
  EXPECT_TRUE(
      close_to(actual.losses, reference_of(exact, ones, &Outcome::losses), DType::f32, kNumSteps));
}

TEST_P(LayoutTest, TrainsAsOneRankDoesInF64) {
  const Outcome actual = run("f64", kNumSteps);
  if (!compares()) {
    return;
  }
  const Outcome& one = reference("f64");
  expect_same_bits(actual.initial, one.initial, "at step 0,");
  expect_same_run(actual, one);
}

// Sums run in the order of ranks, whatever the ranks are.
TEST_P(LayoutTest, RepeatsItselfToTheBit) {
  const Outcome first = run("f32", 3);
  const Outcome second = run("f32", 3);
  const auto expect_same = [&](const Outcome& again) {
    EXPECT_EQ(again.losses, first.losses);
    expect_same_bits(again.gradient, first.gradient, "gradient of");
    expect_same_bits(again.final, first.final, "after 3 steps,");
  };
  expect_same(second);
  if (GetParam().ranks == Ranks::processes && compares()) {
    expect_same(train(layout(), Ranks::threads, "f32", 3));
  }
}

// That say nothing of what is shared out, or of micro-batches.
std::vector<Layout> layouts_with_replicas() {
  std::vector<Layout> result;
  for (Layout one : layouts()) {
    std::erase_if(one.overrides, [](const std::string& override) {
      return override.starts_with("batch.micro_batch=");
    });
    const bool says_which =
        std::any_of(one.overrides.begin(), one.overrides.end(), [](const std::string& override) {
          return override.starts_with("parallel.zero=");
        });
    if (one.data > 1 && !says_which) {
      result.push_back(std::move(one));
    }
  }
  return result;
}

// What ranks share out moves elements and rounds none of them: with one micro-batch a step, whose
// gradient is reduced once in every case, all are one run. With several the gradients of each are
// reduced by themselves from ZeRO-2 on. More layers than there are places in which they take turns.
class ZeroTest : public testing::TestWithParam<Layout> {};

TEST_P(ZeroTest, SharingOutChangesNoBit) {
  const auto run = [](int zero, const std::string& micro_batch) {
    Layout layout = GetParam();
    layout.overrides.push_back("model.num_layers=5");
    layout.overrides.push_back("parallel.zero=" + std::to_string(zero));
    layout.overrides.push_back("batch.micro_batch=" + micro_batch);
    return train(layout, Ranks::threads, "f32", 3);
  };
  const auto expect_same = [](const Outcome& actual, const Outcome& expected) {
    EXPECT_EQ(actual.losses, expected.losses);
    EXPECT_EQ(actual.balance, expected.balance);
    EXPECT_EQ(actual.grad_norms, expected.grad_norms);
    EXPECT_EQ(actual.validation, expected.validation);
    expect_same_bits(actual.gradient, expected.gradient, "gradient of");
    expect_same_bits(actual.final, expected.final, "after 3 steps,");
  };
  const std::string all_at_once = std::to_string(16 / GetParam().data);
  const Outcome moments = run(1, all_at_once);
  for (const int zero : {0, 2, 3}) {
    SCOPED_TRACE("parallel.zero=" + std::to_string(zero));
    expect_same(run(zero, all_at_once), moments);
  }
  if (GetParam().data < 16) {
    SCOPED_TRACE("several micro-batches");
    expect_same(run(3, "1"), run(2, "1"));
  }
}

TEST(Layouts, TakeTheMemoryThatThePlansSay) {
  for (const Layout& layout : layouts()) {
    expect_memory_as_planned(layout, "f32");
  }
}

struct Saved {
  TemporaryDirectory directory;
  Tensors state;
};

std::vector<std::string> saved_run(const Layout& layout, int num_steps) {
  std::vector<std::string> overrides = {"precision.compute=f64",
                                        "batch.global_batch=16",
                                        "optimizer.learning_rate=1e-3",
                                        "schedule.decay=constant",
                                        "schedule.warmup_steps=1",
                                        "metrics.validate_every=0",
                                        "schedule.steps=" + std::to_string(num_steps)};
  overrides.insert(overrides.end(), layout.overrides.begin(), layout.overrides.end());
  return overrides;
}

// Runs `body` on each rank of the run in `saved`.
void on_ranks_of(Saved& saved,
                 const Layout& layout,
                 int num_steps,
                 const std::function<void(RankRun&)>& body) {
  const std::string yaml = tiny_yaml(saved.directory);
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    RankRun run(world, yaml, saved_run(layout, num_steps));
    body(run);
  });
}

// What is logged as a warning while it lives.
class Warnings {
 public:
  Warnings() : sink_(std::make_shared<spdlog::sinks::ostream_sink_mt>(text_)) {
    sink_->set_level(spdlog::level::warn);
    spdlog::default_logger()->sinks().push_back(sink_);
  }
  ~Warnings() { spdlog::default_logger()->sinks().pop_back(); }
  Warnings(const Warnings&) = delete;
  Warnings& operator=(const Warnings&) = delete;

  bool contain(const std::string& words) const {
    return text_.str().find(words) != std::string::npos;
  }

 private:
  std::ostringstream text_;
  std::shared_ptr<spdlog::sinks::ostream_sink_mt> sink_;
};

std::vector<Layout> checkpoint_layouts() {
  std::vector<Layout> result;
  for (const char* name : {"one",
                           "data2_whole_optimizer",
                           "data2_split_expert",
                           "data4_expert2_small_buckets_shared_gradients",
                           "data2_tensor4_shared_heads_shared_weights",
                           "tensor2_whole_sequences",
                           "data4_expert2_split2",
                           "data2_tensor2_expert4",
                           "data2_tensor2_split4",
                           "tensor4_shared_heads",
                           "tensor4_shared_heads_whole_sequences",
                           "data4_tensor2_expert4_split2",
                           "data8",
                           "data2_tensor4_expert2_split2"}) {
    result.push_back(layout_named(name));
  }
  // Stages of both layers or none, too.
  result.push_back(piped("pipeline2", layout_named("data2_expert2"), 2, {}));
  result.push_back(piped("pipeline4",
                         layout_named("tensor2"),
                         4,
                         {"parallel.schedule=zb-h1", "parallel.stages=[1,0,0,1]"}));
  result.push_back(piped("pipeline2_v",
                         layout_named("one_small_batches"),
                         2,
                         {"parallel.schedule=zbv", "parallel.stages=[0,2,0,0]"}));
  return result;
}

class CheckpointLayoutTest : public testing::TestWithParam<Layout> {};

TEST_P(CheckpointLayoutTest, IsReadByEveryLayout) {
  constexpr int kSaved = 3;
  constexpr int kLast =
      6;  // what the first step makes of the optimizer's state shows in the second
  Saved saved;
  std::vector<double> losses;
  on_ranks_of(saved, GetParam(), kSaved, [&](RankRun& run) {
    run.trainer().run();  // which saves after its last step
    Tensors state = run.state();
    std::vector<double> own;
    for (int step = kSaved; step < kLast; ++step) {
      own.push_back(run.trainer().step().loss);
    }
    if (run.world().rank() == 0) {
      saved.state = std::move(state);
      losses = std::move(own);
    }
  });
  const Warnings warnings;
  for (const Layout& reader : checkpoint_layouts()) {
    on_ranks_of(saved, reader, kLast, [&](RankRun& run) {
      ASSERT_EQ(run.trainer().current_step(), kSaved);
      ASSERT_EQ(run.trainer().samples(), 16U * kSaved);
      const Tensors state = run.state();
      const bool compares = run.world().rank() == 0;
      if (compares) {
        expect_same_bits(state, saved.state, ("read by " + reader.name + ",").c_str());
      }
      for (const double expected : losses) {
        const double loss = run.trainer().step().loss;
        if (compares) {
          EXPECT_NEAR(loss, expected, 1e-9 * expected) << reader.name;
        }
      }
    });
  }
  EXPECT_FALSE(warnings.contain("looking into all")) << "a rank opens what the plan names";
}

// A rank opens the files that hold its pieces by the writer's plan. Names say what pieces are all
// the same: what the plan does not find is looked for in every file.
TEST(CheckpointLayout, IsReadWithoutThePlanOfItsWriter) {
  Saved saved;
  const Layout writer = layout_named("data8");
  on_ranks_of(saved, writer, 2, [&](RankRun& run) {
    run.trainer().run();
    Tensors state = run.state();
    if (run.world().rank() == 0) {
      saved.state = std::move(state);
    }
  });
  const std::filesystem::path path = saved.directory.path() / "run" / "step-00000002";
  const WriterLayout wrong{.parallel = {.data = 8, .expert = 1}, .num_ranks = 8};
  for (const auto& [claimed, warned] :
       {std::pair(std::optional<WriterLayout>(), false), std::pair(std::optional(wrong), true)}) {
    const Warnings warnings;
    on_ranks_of(saved, layout_named("data4_tensor2_expert4_split2"), 2, [&](RankRun& run) {
      Trainer& trainer = run.trainer();
      const std::size_t num_segments = trainer.plan().parameters.segments.size();
      for (std::size_t i = 0; i < num_segments; ++i) {
        const TensorView weights_n = trainer.parameters().owned_weights(i);
        std::memset(weights_n.data, 0, weights_n.bytes());
      }
      for (const Optimizer::StateTensor& state : trainer.optimizer().state()) {
        std::memset(state.view.data, 0, state.view.bytes());
      }
      const Groups groups(run.world(),
                          run.mesh(),
                          run.config().model,
                          Device::cpu,
                          create_group_of_all(run.world()));
      load_checkpoint(path,
                      claimed,
                      run.config().model,
                      trainer.residency(),
                      trainer.optimizer(),
                      groups,
                      trainer.stream());
      const Tensors state = run.state();
      if (run.world().rank() == 0) {
        expect_same_bits(state, saved.state, "read again,");
      }
    });
    EXPECT_EQ(warnings.contain("looking into all"), warned);
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts,
                         ZeroTest,
                         testing::ValuesIn(layouts_with_replicas()),
                         [](const auto& tested) { return tested.param.name; });

INSTANTIATE_TEST_SUITE_P(Layouts,
                         CheckpointLayoutTest,
                         testing::ValuesIn(checkpoint_layouts()),
                         [](const auto& tested) { return tested.param.name; });

std::vector<Case> cases_of_threads() {
  std::vector<Case> result;
  for (const Layout& one : layouts()) {
    result.push_back({one, Ranks::threads});
  }
  return result;
}

// Asked once the job is known. Nothing where there is none.
std::vector<Case> cases_of_processes() {
  std::vector<Case> result;
  for (const Layout& one : layouts()) {
    if (one.num_ranks > 1 && one.num_ranks == process_world().size()) {
      result.push_back({one, Ranks::processes});
    }
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Layouts,
                         LayoutTest,
                         testing::ValuesIn(cases_of_threads()),
                         [](const auto& tested) { return tested.param.layout.name; });

INSTANTIATE_TEST_SUITE_P(processes,
                         LayoutTest,
                         testing::ValuesIn(cases_of_processes()),
                         [](const auto& tested) { return tested.param.layout.name; });

}  // namespace
}  // namespace memphis::test
