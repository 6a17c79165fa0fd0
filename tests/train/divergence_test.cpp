// SPDX-License-Identifier: Apache-2.0
//
// Steps that are left out because their gradient is no number, and runs that go back to a checkpoint
// where it is too large.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include "csrc/checkpoint/state_pieces.h"
#include "csrc/checkpoint/store.h"
#include "csrc/core/error.h"
#include "csrc/core/file.h"
#include "csrc/core/json.h"
#include "csrc/train/trainer.h"
#include "tests/support/error_text.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> state_of(Trainer& trainer) {
  std::vector<StatePiece> pieces = weight_pieces(trainer.parameters());
  for (StatePiece& piece : optimizer_pieces(trainer.parameters(), trainer.optimizer())) {
    pieces.push_back(std::move(piece));
  }
  std::vector<std::string> state;
  for (const StatePiece& piece : pieces) {
    std::string& bytes = state.emplace_back(piece.view.bytes(), '\0');
    device_copy(bytes.data(), piece.view.data, bytes.size(), trainer.stream());
  }
  synchronize(trainer.stream());
  return state;
}

// Makes one weight of the final norm, which every token meets, no number while it lives.
class BrokenWeight {
 public:
  explicit BrokenWeight(Trainer& trainer) : stream_(trainer.stream()) {
    for (const StatePiece& piece : weight_pieces(trainer.parameters())) {
      if (piece.name == "model.norm.weight") {
        weight_ = piece.view.data;
      }
    }
    const float broken = std::numeric_limits<float>::quiet_NaN();
    copy(&before_, weight_);
    copy(weight_, &broken);
  }
  ~BrokenWeight() { copy(weight_, &before_); }
  BrokenWeight(const BrokenWeight&) = delete;
  BrokenWeight& operator=(const BrokenWeight&) = delete;

 private:
  void copy(void* to, const void* from) const {
    device_copy(to, from, sizeof(float), stream_);
    synchronize(stream_);
  }

  Stream stream_;
  void* weight_ = nullptr;
  float before_ = 0;
};

class SkippedStep : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (GetParam() != "cpu" && !device_available(Device::cuda)) {
      GTEST_SKIP() << device_unavailable_reason();
    }
  }
  Config config(int max_skipped = 2) const {
    std::vector<std::string> overrides = {"run.device=" + GetParam(),

                                          "batch.micro_batch=1",
                                          "batch.global_batch=2",
                                          "batch.sequence_length=16",
                                          "model.vocab_size=264",
                                          "model.ffn_dim=16",
                                          "model.num_layers=1",
                                          "schedule.warmup_steps=0",
                                          "schedule.decay=constant"};
    overrides.push_back(fmt::format("optimizer.max_skipped={}", max_skipped));
    return tiny_config(directory_, overrides);
  }

  TemporaryDirectory directory_;
};

TEST_P(SkippedStep, ChangesNothingAndIsNotCounted) {
  Trainer trainer(config(), {});
  Trainer other(config(), {});
  EXPECT_FALSE(trainer.step().skipped);
  other.step();
  const std::vector<std::string> before = state_of(trainer);
  {
    const BrokenWeight broken(trainer);
    for (int i = 0; i < 2; ++i) {
      const StepResult result = trainer.step();
      EXPECT_TRUE(result.skipped);
      EXPECT_FALSE(std::isfinite(result.grad_norm));
    }
  }
  EXPECT_TRUE(state_of(trainer) == before);
  EXPECT_EQ(trainer.current_step(), 3);
  EXPECT_EQ(trainer.samples(), 6U) << "the samples are passed over";
  EXPECT_FALSE(trainer.step().skipped);
  {
    const BrokenWeight broken(trainer);
    EXPECT_TRUE(trainer.step().skipped) << "two in a row, and not two of all";
  }
}

// The first step of Adam has the length of the learning rate, whatever the gradient's: steps that were
// left out before it have not made it a later one.
TEST_P(SkippedStep, IsNotOneOfTheOptimizersSteps) {
  Trainer trainer(config(), {});
  {
    const BrokenWeight broken(trainer);
    trainer.step();
    trainer.step();
  }
  const auto norm = [&] {
    for (const StatePiece& piece : weight_pieces(trainer.parameters())) {
      if (piece.name == "model.norm.weight") {
        return elements(
            piece.view, {.begin = 0, .count = piece.view.num_elements()}, trainer.stream());
      }
    }
    return std::vector<double>();
  };
  const std::vector<double> before = norm();
  trainer.step();
  const std::vector<double> after = norm();
  double moved = 0;
  for (std::size_t i = 0; i < before.size(); ++i) {
    moved = std::max(moved, std::abs(after[i] - before[i]));
  }
  // As the third step it would be 0.62 of that.
  EXPECT_NEAR(moved, 4e-3, 0.05 * 4e-3);
}

TEST_P(SkippedStep, EndsTheRunAfterSoManyInARow) {
  Trainer trainer(config(), {});
  const BrokenWeight broken(trainer);
  trainer.step();
  trainer.step();
  const std::string text = error_text<DivergedError>([&] { trainer.step(); });
  EXPECT_EQ(text.find("step 3 has loss "), 0U) << text;
  EXPECT_NE(text.find("3 steps in a row, of which optimizer.max_skipped allows 2"),
            std::string::npos)
      << text;
  Trainer strict(config(0), {});
  const BrokenWeight broken_too(strict);
  EXPECT_THROW(strict.step(), DivergedError);
}

INSTANTIATE_TEST_SUITE_P(Devices,
                         SkippedStep,
                         testing::Values("cpu", "cuda"),
                         [](const auto& tested) { return tested.param; });

// Runs of 24 steps that save every fourth, at a constant learning rate.
class Rewind : public testing::Test {
 protected:
  void train(const std::string& name,
             int num_ranks,
             const std::vector<std::string>& more,
             int steps = 24) {
    const std::string yaml = tiny_yaml(directory_);
    on_ranks(Ranks::threads, num_ranks, [&](World& world) {
      std::vector<std::string> overrides = {"run.dir=" + run_dir(name).string(),
                                            fmt::format("schedule.steps={}", steps),
                                            "schedule.decay=constant",
                                            "schedule.warmup_steps=2",
                                            "checkpoint.keep=30",
                                            "optimizer.clip_norm=0",
                                            "metrics.validate_every=0",
                                            "metrics.validate_batches=1"};
      overrides.insert(overrides.end(), more.begin(), more.end());
      Trainer trainer(
          parse_config(yaml, "tiny.yaml", overrides, Check::machine, num_ranks), {}, world);
      trainer.run();
      samples_ = trainer.samples();
    });
  }
  fs::path run_dir(const std::string& name) const { return directory_.path() / name; }

  // The gradient's norm of each step that metrics.jsonl has, from step 1.
  std::vector<double> norms(const std::string& name) const {
    std::vector<double> result;
    const std::string text = read_text(run_dir(name) / "metrics.jsonl");
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = text.find('\n', begin);
      const auto line = parse_json(text.substr(begin, end - begin)).value();
      if (line.contains("grad_norm")) {
        EXPECT_EQ(line["step"].get<std::size_t>(), result.size() + 1) << "each step stands once";
        result.push_back(line["grad_norm"].get<double>());
      }
      begin = end + 1;
    }
    return result;
  }
  std::string file(const std::string& name, int step, const char* which) const {
    return read_text(run_dir(name) / checkpoint_name(step) / which);
  }

  TemporaryDirectory directory_;
  std::uint64_t samples_ = 0;
};

// Where a run goes back if it saves every `every` steps: at step `step`, and no step before it since
// the first checkpoint has a gradient as large as that.
struct Spike {
  int every = 0;
  int step = 0;
  double limit = 0;
};
Spike find_spike(const std::vector<double>& norms) {
  for (int every = 3; every < 12; ++every) {
    double largest = norms[static_cast<std::size_t>(every)];  // of the step behind the checkpoint
    for (int step = every + 2; step <= 18; ++step) {
      const double norm = norms[static_cast<std::size_t>(step - 1)];
      if (norm > largest) {
        return {.every = every, .step = step, .limit = (norm + largest) / 2};
      }
      largest = std::max(largest, norm);
    }
  }
  return {};
}

TEST_F(Rewind, GoesBackAndPassesOverTheSamples) {
  train("plain", 1, {"checkpoint.every=1"});
  EXPECT_EQ(samples_, 24U * 8);
  const std::vector<double> plain = norms("plain");
  ASSERT_EQ(plain.size(), 24U);
  const Spike spike = find_spike(plain);
  ASSERT_GT(spike.step, 0) << "the norms of this run fall at each step";
  const std::vector<std::string> rewinds = {
      fmt::format("optimizer.rewind_norm={:.17g}", spike.limit),
      fmt::format("checkpoint.every={}", spike.every),
      "optimizer.max_rewinds=20"};

  train("rewound", 1, rewinds);
  const int saved = (spike.step - 1) / spike.every * spike.every;
  for (const char* which : {"model.safetensors", "optimizer.safetensors"}) {
    EXPECT_EQ(file("rewound", saved, which), file("plain", saved, which))
        << "up to the checkpoint before step " << spike.step << " they are one run";
    EXPECT_NE(file("rewound", 24, which), file("plain", 24, which));
  }
  const std::uint64_t rewound_samples = samples_;
  EXPECT_GT(rewound_samples, 24U * 8) << "some are passed over";
  const std::vector<double> rewound = norms("rewound");
  ASSERT_EQ(rewound.size(), 24U);
  for (std::size_t i = 0; i < rewound.size(); ++i) {
    EXPECT_TRUE(i < static_cast<std::size_t>(spike.every) || rewound[i] <= spike.limit)
        << "step " << i + 1;
  }

  // A run that is stopped anywhere, the spike included, and started again decides alike.
  for (const int stop : {spike.step - 1, spike.step, spike.step + 1}) {
    const std::string name = fmt::format("stopped-{}", stop);
    train(name, 1, rewinds, stop);
    train(name, 1, rewinds);
    EXPECT_EQ(samples_, rewound_samples) << name;
    for (const char* which : {"model.safetensors", "optimizer.safetensors"}) {
      EXPECT_EQ(file(name, 24, which), file("rewound", 24, which)) << name;
    }
  }
}

TEST_F(Rewind, EndsWhereItWouldGoBackForEver) {
  train("short", 1, {}, 8);
  const std::string text = error_text<DivergedError>([&] {
    Trainer trainer(tiny_config(directory_,
                                {"run.dir=" + run_dir("short").string(),
                                 "schedule.steps=24",
                                 "schedule.decay=constant",
                                 "schedule.warmup_steps=2",
                                 "optimizer.clip_norm=0",
                                 "optimizer.rewind_norm=1e-6",
                                 "optimizer.max_rewinds=2",
                                 "metrics.validate_every=0"}),
                    {});
    trainer.run();
  });
  EXPECT_EQ(text.find("step 9 has a gradient of norm "), 0U) << text;
  EXPECT_NE(text.find("the run went back to step 8 2 times, as often as optimizer.max_rewinds"),
            std::string::npos)
      << text;
}

TEST_F(Rewind, GoesOnWhereNothingIsSaved) {
  train("early", 1, {"optimizer.rewind_norm=1e-6"}, 4);
  EXPECT_EQ(samples_, 4U * 8);
}

TEST_F(Rewind, IsTheSameOnAllRanks) {
  train("two", 2, {"checkpoint.every=4"}, 8);
  const std::string before = file("two", 8, "weights-00001-of-00002.safetensors");
  std::vector<double> late = norms("two");
  const double limit = *std::max_element(late.begin() + 4, late.end()) * 0.999;
  train("two-rewound",
        2,
        {"checkpoint.every=4",
         "optimizer.max_rewinds=20",
         fmt::format("optimizer.rewind_norm={:.17g}", limit)},
        8);
  EXPECT_GT(samples_, 8U * 8);
  EXPECT_NE(file("two-rewound", 8, "weights-00001-of-00002.safetensors"), before);
}

}  // namespace
}  // namespace memphis::test
