// SPDX-License-Identifier: Apache-2.0
//
// A pipeline changes nothing but which rank does what, and when. Each case is a run of a few steps,
// held to the same run on one rank in f64, where what differs is rounding alone:
//
//   every layout     of layouts(), cut into 2 and 4 pipeline ranks, in every schedule, with stages
//                    of unequal size and without layers
//   schedules        the same bits in all of them, with the gradient clipped and without
//   delays           of any message on any rank: the same bits, and an end
//   memory           what the plan of each rank says
//   samples          the same text
#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <ostream>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/together.h"
#include "csrc/core/device.h"
#include "tests/support/departure.h"
#include "tests/support/layout_run.h"
#include "tests/support/ranks.h"
#include "tests/support/tiny_run.h"
#include "tests/support/world_decorator.h"

namespace memphis::test {
namespace {

// The second step has what the first one made of the weights, and of a copy of them.
constexpr int kNumSteps = 2;

struct Schedule {
  std::string name;
  int pipeline;
  std::vector<std::string> overrides;
};

// Of four layers. Eight stages have some without.
const std::vector<Schedule>& schedules() {
  static const std::vector<Schedule> table = {
      {"1f1b_2", 2, {"parallel.stages=[1,3]"}},
      {"interleaved_2", 2, {"parallel.schedule=interleaved", "parallel.chunks=2"}},
      {"zb_h1_2", 2, {"parallel.schedule=zb-h1"}},
      {"zbv_2", 2, {"parallel.schedule=zbv"}},
      {"1f1b_4", 4, {}},
      {"interleaved_4",
       4,
       {"parallel.schedule=interleaved", "parallel.chunks=2", "parallel.stages=[0,1,1,0,1,1,0,0]"}},
      {"zb_h1_4", 4, {"parallel.schedule=zb-h1", "parallel.stages=[2,0,1,1]"}},
      {"zbv_4", 4, {"parallel.schedule=zbv", "parallel.stages=[1,0,1,0,0,2,0,0]"}},
  };
  return table;
}

Schedule schedule_named(const std::string& name) {
  for (const Schedule& one : schedules()) {
    if (one.name == name) {
      return one;
    }
  }
  throw ContractError("there is no schedule " + name);
}

bool sets(const Layout& layout, std::string_view text) {
  for (const std::string& override : layout.overrides) {
    if (override.find(text) != std::string::npos) {
      return true;
    }
  }
  return false;
}

// A layout with four layers, as many micro-batches as its samples give, and what `more` says.
Layout deep(const Layout& layout, const std::vector<std::string>& more = {}) {
  Layout result = layout;
  std::erase_if(result.overrides, [](const std::string& override) {
    return override.starts_with("batch.micro_batch");
  });
  result.overrides.push_back("model.num_layers=4");
  result.overrides.push_back("batch.micro_batch=1");
  result.overrides.insert(result.overrides.end(), more.begin(), more.end());
  return result;
}

Layout with(const Schedule& schedule, const Layout& layout) {
  return piped(layout.name + "_" + schedule.name, layout, schedule.pipeline, schedule.overrides);
}

const Outcome& one_rank(const std::string& model) {
  static std::map<std::string, Outcome> outcomes;
  const auto found = outcomes.find(model);
  return found != outcomes.end()
             ? found->second
             : outcomes
                   .emplace(
                       model,
                       train(deep(layouts().front(), {model}), Ranks::threads, "f64", kNumSteps))
                   .first->second;
}

// With and without what the layouts have in turn: a tied embedding is on two ranks of most.
constexpr const char* kModels[] = {"model.tie_embeddings=true", "model.tie_embeddings=false"};

struct Case {
  Layout layout;
  std::string model;
  Ranks ranks = Ranks::threads;
};

void PrintTo(const Case& tested, std::ostream* out) {
  *out << tested.layout.name;
}

// Of processes, those with as many ranks as this job has.
std::vector<Case> all_cases(Ranks ranks) {
  std::vector<Case> result;
  std::size_t turn = 0;
  for (const Layout& one : layouts()) {
    if (sets(one, "zero=2") || sets(one, "zero=3")) {
      continue;  // are refused
    }
    for (const Schedule& schedule : schedules()) {
      const char* const model = kModels[turn++ % std::size(kModels)];
      const Case tested{
          .layout = with(schedule, deep(one, {model})), .model = model, .ranks = ranks};
      if (ranks == Ranks::threads || tested.layout.num_ranks == process_world().size()) {
        result.push_back(tested);
      }
    }
    ++turn;
  }
  return result;
}

class PipelineLayoutTest : public testing::TestWithParam<Case> {};

TEST_P(PipelineLayoutTest, TrainsAsOneRankDoes) {
  const Case& tested = GetParam();
  const Outcome actual = train(tested.layout, tested.ranks, "f64", kNumSteps);
  bool failed = false;
  if (tested.ranks == Ranks::threads || process_world().rank() == 0) {
    const Outcome& exact = one_rank(tested.model);
    expect_same_bits(actual.initial, exact.initial, "at step 0,");
    expect_same_run(actual, exact);
    failed = HasFailure();
  }
  if (fails_on_any_rank(tested.ranks, failed)) {
    const FirstStep actual_step = first_step(tested.layout, tested.ranks);
    if (failed) {
      ADD_FAILURE() << describe_departure(
          first_step(deep(layouts().front(), {tested.model}), Ranks::threads), actual_step);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(threads,
                         PipelineLayoutTest,
                         testing::ValuesIn(all_cases(Ranks::threads)),
                         [](const auto& tested) { return tested.param.layout.name; });
INSTANTIATE_TEST_SUITE_P(processes,
                         PipelineLayoutTest,
                         testing::ValuesIn(all_cases(Ranks::processes)),
                         [](const auto& tested) { return tested.param.layout.name; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PipelineLayoutTest);

// Sums run over micro-batches and ranks in the same order in all of them, and the norm of the
// gradient over layers.
TEST(Pipeline, SchedulesHaveTheSameBits) {
  // Of a tied embedding a V has both uses on one rank, and adds them up in another order.
  for (const auto& [model, names] :
       {std::pair(kModels[0],
                  std::vector<std::string>{
                      "1f1b_2", "interleaved_2", "zb_h1_2", "1f1b_4", "interleaved_4", "zb_h1_4"}),
        std::pair(kModels[1],
                  std::vector<std::string>{
                      "1f1b_2", "interleaved_2", "zb_h1_2", "zbv_2", "1f1b_4", "zbv_4"})}) {
    for (const char* layout : {"one", "data2", "data2_tensor2_expert2_split2"}) {
      const Layout cut = deep(layout_named(layout), {model, "optimizer.clip_norm=0.5"});
      Outcome first;
      for (const std::string& name : names) {
        SCOPED_TRACE(std::string(layout) + " " + name);
        const Outcome actual = train(with(schedule_named(name), cut), Ranks::threads, "f32", 4);
        if (name == names.front()) {
          first = actual;
          continue;
        }
        EXPECT_EQ(actual.losses, first.losses);
        EXPECT_EQ(actual.balance, first.balance);
        EXPECT_EQ(actual.grad_norms, first.grad_norms);
        EXPECT_EQ(actual.validation, first.validation);
        expect_same_bits(actual.gradient, first.gradient, "gradient of");
        expect_same_bits(actual.final, first.final, "after 4 steps,");
      }
    }
  }
}

// Messages of a pipeline leave late, and waits for them, by a time drawn for each: few of them, as
// one that is late when all are is on time.
class LateCommunicator final : public CommunicatorDecorator {
 public:
  LateCommunicator(std::unique_ptr<Communicator> real, std::uint32_t seed)
      : CommunicatorDecorator(std::move(real)), engine_(seed) {}

 private:
  void before(const Collective& /*collective*/, std::string_view /*name*/) override {
    constexpr int kMostMicroseconds = 2000;
    constexpr int kOften = 16;
    if (std::uniform_int_distribution<int>(0, kOften - 1)(engine_) == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(
          std::uniform_int_distribution<int>(0, kMostMicroseconds)(engine_)));
    }
  }

  std::mt19937 engine_;
};

class LateWorld final : public WorldDecorator {
 public:
  LateWorld(World& real, std::uint32_t seed) : WorldDecorator(real), seed_(seed) {}

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device,
                                             int num_channels) override {
    const bool is_late = axis.starts_with("pipeline");
    std::unique_ptr<Communicator> group =
        real().create_group(std::move(axis), ranks, device, num_channels);
    if (!is_late) {
      return group;
    }
    seed_ = seed_ * 31 + static_cast<std::uint32_t>(rank());
    return std::make_unique<LateCommunicator>(std::move(group), seed_);
  }

 private:
  std::uint32_t seed_;
};

// So many of a run are late. What a delay has changed stays in the weights, so that a later step says
// so too: a few long runs show what as many steps of short ones would.
constexpr int kNumLateSteps = 20;

// Losses of all steps, of validation in between, and the weights after the last.
std::pair<std::vector<double>, Tensors> run_late(const Layout& layout,
                                                 Ranks ranks,
                                                 std::uint32_t seed) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  std::pair<std::vector<double>, Tensors> result;
  on_ranks(ranks, layout.num_ranks, [&](World& world) {
    LateWorld late(world, seed);
    RankRun run(seed == 0 ? world : late, yaml, run_overrides(layout, "f32"));
    std::vector<double> losses;
    for (int step = 1; step <= kNumLateSteps; ++step) {
      losses.push_back(run.trainer().step().loss);
      if (step % 5 == 0) {
        losses.push_back(run.trainer().validation_loss());
      }
    }
    Tensors weights = run.weights();
    if (keeps_result(ranks, world)) {
      result = {std::move(losses), std::move(weights)};
    }
  });
  return result;
}

void expect_no_delay_matters(int pipeline, Ranks ranks, int num_seeds) {
  const std::vector<std::string> small = {
      "model.tie_embeddings=true", "batch.sequence_length=8", "metrics.validate_batches=4"};
  for (const Schedule& schedule : schedules()) {
    if (schedule.pipeline != pipeline) {
      continue;
    }
    const Layout layout = with(schedule, deep(layout_named("one"), small));
    const auto expected = run_late(layout, ranks, 0);
    for (int seed = 1; seed <= num_seeds; ++seed) {
      const auto actual = run_late(layout, ranks, static_cast<std::uint32_t>(seed));
      EXPECT_EQ(actual.first, expected.first) << schedule.name << ", seed " << seed;
      EXPECT_EQ(actual.second, expected.second) << schedule.name << ", seed " << seed;
    }
  }
}

class PipelineDelayTest : public testing::TestWithParam<Ranks> {};

// Of each schedule over as many ranks.
TEST_P(PipelineDelayTest, ChangesNothing) {
  constexpr int kNumSeeds = 5;
  const bool threads = GetParam() == Ranks::threads;
  expect_no_delay_matters(threads ? 4 : process_world().size(), GetParam(), kNumSeeds);
}

INSTANTIATE_TEST_SUITE_P(threads, PipelineDelayTest, testing::Values(Ranks::threads));
INSTANTIATE_TEST_SUITE_P(processes,
                         PipelineDelayTest,
                         testing::ValuesIn(process_world().size() > 1
                                               ? std::vector<Ranks>{Ranks::processes}
                                               : std::vector<Ranks>{}));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PipelineDelayTest);

TEST(Pipeline, TakesTheMemoryThatThePlansSay) {
  for (const Schedule& schedule : schedules()) {
    expect_memory_as_planned(
        with(schedule,
             deep(layout_named("data2"), {"metrics.sample_every=1", "memory.recompute=norm"})),
        "bf16");
  }
}

// What a run writes of samples of text.
std::vector<std::string> samples_of(const Layout& layout) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
    RankRun run(world, yaml, run_overrides(layout, "f64"));
    run.trainer().run();
  });
  std::vector<std::string> samples;
  std::ifstream metrics(directory.path() / "run" / "metrics.jsonl");
  for (std::string line; std::getline(metrics, line);) {
    if (line.find("\"sample\"") != std::string::npos) {
      samples.push_back(line.substr(line.find("\"sample\"")));
    }
  }
  return samples;
}

TEST(Pipeline, SamplesTheSameText) {
  const std::vector<std::string> more = {"schedule.steps=6",
                                         "schedule.warmup_steps=1",
                                         "metrics.validate_every=0",
                                         "metrics.sample_every=3",
                                         "metrics.sample_tokens=10"};
  const std::vector<std::string> expected = samples_of(deep(layout_named("one"), more));
  ASSERT_EQ(expected.size(), 2U);
  for (const Schedule& schedule : schedules()) {
    EXPECT_EQ(samples_of(with(schedule, deep(layout_named("tensor2"), more))), expected)
        << schedule.name;
  }
}

}  // namespace
}  // namespace memphis::test
