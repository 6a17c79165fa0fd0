// SPDX-License-Identifier: Apache-2.0
//
// What the host does around the steps of a run: how often the ranks meet in its memory, when it reads
// what a step reports, and that nothing depends on when it does.
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/checkpoint/store.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"
#include "tests/support/world_decorator.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

constexpr int kNumSteps = 6;

struct Meeting {
  std::string axis;
  std::string name;
};

// What lies in the host's memory on every device.
bool is_of_host(const Meeting& meeting) {
  return meeting.axis == "world" || meeting.axis.ends_with("_host");
}

// Writes down a rank's collectives, and in step `broken_step` makes the first gradient that rank 0
// reduces no number.
class Watched final : public WorldDecorator {
 public:
  explicit Watched(World& world, std::int64_t broken_step = 0)
      : WorldDecorator(world), broken_step_(broken_step) {}

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override;

  void note(const std::string& axis, const Collective& collective, std::string_view name) {
    meetings.push_back({.axis = axis, .name = std::string(name)});
    if (name != "optimizer.gradients" || rank() != 0 || broken_step_ == 0 ||
        activity().place().step != broken_step_) {
      return;
    }
    std::visit(
        [](const auto& sum) {
          require(sum.x.dtype == DType::f32, "gradients are f32");
          *static_cast<float*>(sum.x.data) = std::numeric_limits<float>::quiet_NaN();
        },
        std::get<Sums>(collective).parts.front());
    broken_step_ = 0;
  }

  std::vector<Meeting> meetings;

 private:
  std::int64_t broken_step_;
};

class WatchedGroup final : public CommunicatorDecorator {
 public:
  WatchedGroup(std::unique_ptr<Communicator> real, std::string axis, Watched& world)
      : CommunicatorDecorator(std::move(real)), axis_(std::move(axis)), world_(world) {}

 private:
  void before(const Collective& collective, std::string_view name) override {
    if (size() > 1) {
      world_.note(axis_, collective, name);
    }
  }

  std::string axis_;
  Watched& world_;
};

std::unique_ptr<Communicator> Watched::create_group(std::string axis,
                                                    std::span<const int> ranks,
                                                    Device device,
                                                    int num_channels) {
  auto group = real().create_group(axis, ranks, device, num_channels);
  return std::make_unique<WatchedGroup>(std::move(group), std::move(axis), *this);
}

struct DoneRun {
  std::vector<Meeting> meetings;  // of rank 0
  Tensors state;
  std::vector<nlohmann::json> lines;  // of metrics.jsonl
  fs::path dir;
};

// A run of kNumSteps; of its steps those that `every` divides are followed by something.
DoneRun run(const TemporaryDirectory& directory,
            const Layout& layout,
            int every,
            std::int64_t broken_step = 0,
            const std::vector<std::string>& more = {}) {
  DoneRun result;
  const std::string yaml = tiny_yaml(directory);
  result.dir = directory.path() / ("every" + std::to_string(every) + layout.name);
  std::vector<std::string> overrides = run_overrides(layout, "f32");
  for (const std::string& override : {"run.dir=" + result.dir.string(),
                                      "schedule.steps=" + std::to_string(kNumSteps),
                                      "metrics.every=" + std::to_string(every),
                                      std::string("metrics.validate_every=0"),
                                      std::string("metrics.validate_batches=1")}) {
    overrides.push_back(override);
  }
  overrides.insert(overrides.end(), more.begin(), more.end());
  if (more.empty() || !more.back().starts_with("checkpoint.every")) {
    overrides.emplace_back("checkpoint.every=0");
  }
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    Watched watched(world, broken_step);
    RankRun rank(watched, yaml, overrides);
    rank.trainer().run();
    Tensors state = rank.state();
    if (world.rank() == 0) {
      result.state = std::move(state);
      result.meetings = std::move(watched.meetings);
    }
  });
  const std::string text = read_text(result.dir / "metrics.jsonl");
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    result.lines.push_back(parse_json(text.substr(begin, end - begin)).value());
    begin = end + 1;
  }
  return result;
}

// S for the samples of a step, R for where it is read.
std::string order_of(const DoneRun& run) {
  std::string order;
  for (const Meeting& meeting : run.meetings) {
    order += meeting.name == "step.samples" ? "S" : meeting.name == "step.expert_load" ? "R" : "";
  }
  return order;
}

// What the lines of steps say but for times.
std::vector<nlohmann::json> reports_of(const DoneRun& run) {
  std::vector<nlohmann::json> reports;
  for (const nlohmann::json& line : run.lines) {
    if (!line.contains("expert_load_max")) {
      continue;
    }
    nlohmann::json& report = reports.emplace_back();
    for (const char* key : {"step",
                            "samples",
                            "loss",
                            "balance_loss",
                            "router_z_loss",
                            "grad_norm",
                            "learning_rate",
                            "expert_load_max",
                            "tokens",
                            "skipped"}) {
      report[key] = line.value(key, nlohmann::json());
    }
  }
  return reports;
}

std::vector<Layout> layouts_of_all_kinds() {
  std::vector<Layout> result;
  for (const Layout& layout : layouts()) {
    if (layout.num_ranks > 1) {
      result.push_back(layout);
    }
  }
  const Layout& stage = layout_named("data2_tensor2_expert4");
  result.push_back(piped("pipeline2_1f1b", stage, 2, {"parallel.schedule=1f1b"}));
  result.push_back(
      piped("pipeline2_zbv", stage, 2, {"parallel.schedule=zbv", "parallel.stages=[1,0,1,0]"}));
  return result;
}

class StepOrder : public testing::TestWithParam<Layout> {};

// Beside what carries activations, gradients and weights.
TEST_P(StepOrder, RanksMeetTwiceAStepOnTheHost) {
  const TemporaryDirectory directory;
  const DoneRun done = run(directory, GetParam(), 1000);
  std::vector<std::vector<std::string>> steps;
  for (const Meeting& meeting : done.meetings) {
    if (meeting.name == "step.samples") {
      steps.emplace_back();
    }
    if (!steps.empty() && is_of_host(meeting)) {
      steps.back().push_back(meeting.name);
    }
  }
  ASSERT_EQ(steps.size(), static_cast<std::size_t>(kNumSteps));
  // The first has nothing to read, and the run's end follows the last.
  EXPECT_EQ(steps[0], std::vector<std::string>{"step.samples"});
  for (std::size_t i = 1; i + 1 < steps.size(); ++i) {
    EXPECT_EQ(steps[i], (std::vector<std::string>{"step.samples", "step.expert_load"})) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts,
                         StepOrder,
                         testing::ValuesIn(layouts_of_all_kinds()),
                         [](const auto& tested) { return tested.param.name; });

const Layout& two_ranks() {
  static const Layout layout = test::layout("data2_expert2", 2, 1, 2, 1);
  return layout;
}

TEST(StepReading, IsOneStepLateUnlessSomethingFollowsTheStep) {
  const TemporaryDirectory directory;
  EXPECT_EQ(order_of(run(directory, two_ranks(), 1000)), "SSRSRSRSRSRR");
  EXPECT_EQ(order_of(run(directory, two_ranks(), 3)), "SSRSRRSSRSRR");
  EXPECT_EQ(order_of(run(directory, two_ranks(), 1)), "SRSRSRSRSRSR");
}

TEST(StepReading, ChangesNothingWhenItIsLate) {
  const TemporaryDirectory directory;
  const DoneRun late = run(directory, two_ranks(), 1000);
  const DoneRun prompt = run(directory, two_ranks(), 1);
  ASSERT_EQ(reports_of(prompt).size(), static_cast<std::size_t>(kNumSteps));
  EXPECT_EQ(reports_of(late), reports_of(prompt));
  expect_same_bits(late.state, prompt.state, "state");
}

// The next step's gradients are on their way when a step turns out to be left out; its update is one
// of the optimizer's steps less all the same.
TEST(StepReading, KnowsOfAStepThatIsLeftOutBeforeTheNextUpdate) {
  const TemporaryDirectory directory;
  const std::vector<std::string> more = {"schedule.warmup_steps=0", "optimizer.max_skipped=2"};
  const DoneRun late = run(directory, two_ranks(), 1000, 2, more);
  const DoneRun prompt = run(directory, two_ranks(), 1, 2, more);
  const std::vector<nlohmann::json> reports = reports_of(late);
  ASSERT_EQ(reports.size(), static_cast<std::size_t>(kNumSteps));
  for (std::size_t i = 0; i < reports.size(); ++i) {
    EXPECT_EQ(reports[i].at("skipped") == nlohmann::json(true), i == 1) << i;
  }
  EXPECT_EQ(reports, reports_of(prompt));
  expect_same_bits(late.state, prompt.state, "state");
}

// Read late or at once, a step that diverges is the run's last, and its weights are not saved.
TEST(StepReading, EndsARunThatDivergesBeforeItsWeightsAreSaved) {
  for (const int every : {1000, 1}) {
    for (const int saves : {0, 3, 4}) {
      SCOPED_TRACE(std::to_string(every) + " " + std::to_string(saves));
      const TemporaryDirectory directory;
      std::string text;
      try {
        run(directory,
            two_ranks(),
            every,
            3,
            {"optimizer.max_skipped=0", "checkpoint.every=" + std::to_string(saves)});
      } catch (const DivergedError& error) {
        text = error.what();
      }
      EXPECT_EQ(text.find("step 3 has loss "), 0U) << text;
      const fs::path dir = directory.path() / ("every" + std::to_string(every) + two_ranks().name);
      for (const std::int64_t step : {3, 4}) {
        EXPECT_FALSE(fs::exists(dir / checkpoint_name(step))) << step;
      }
      const std::string lines = read_text(dir / "metrics.jsonl");
      EXPECT_EQ(lines.find("{\"step\":3"), std::string::npos) << lines;
      EXPECT_NE(lines.find("{\"step\":2,\"time\""), std::string::npos) << lines;
      EXPECT_NE(lines.find("\"done\":false"), std::string::npos) << lines;
    }
  }
}

}  // namespace
}  // namespace memphis::test
