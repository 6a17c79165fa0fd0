// SPDX-License-Identifier: Apache-2.0
//
// Training steps on one rank against the same steps written down once more: which samples, whose
// gradient (the model's own, which other tests hold to the equations), which learning rate, and
// AdamW in double precision. Layouts are held to each other: what all of them do wrongly only this
// sees.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <omp.h>

#include "csrc/data/dataset.h"
#include "csrc/data/loader.h"
#include "csrc/train/trainer.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

using Values = std::vector<double>;

constexpr std::int64_t kSteps = 4;

// Warm-up over two steps and a decay over the others; a clip that bends some steps; an eps that is
// not small beside the gradients.
const std::vector<std::string> kOverrides = {"precision.compute=f64",
                                             "batch.micro_batch=2",
                                             "batch.global_batch=6",
                                             "batch.sequence_length=12",
                                             "optimizer.beta1=0.7",
                                             "optimizer.beta2=0.9",
                                             "optimizer.eps=1e-3",
                                             "optimizer.weight_decay=0.3",
                                             "optimizer.clip_norm=2.4",
                                             "optimizer.learning_rate=0.01",
                                             "schedule.steps=4",
                                             "schedule.warmup_steps=2",
                                             "schedule.min_ratio=0.2",
                                             "loss.balance=0.3",
                                             "loss.router_z=0.05",
                                             "run.seed=3"};

Values elements(const TensorView& view) {
  const double* begin = view.as<double>();
  return {begin, begin + view.num_elements()};
}

// A linear warm-up to the peak at step 2, half a cosine from there to a fifth of it at step 4.
double learning_rate_of(std::int64_t step) {
  const double heights[] = {0.5, 1, 0.2 + 0.8 * 0.5, 0.2};
  return 0.01 * heights[step - 1];
}

struct Moments {
  Values m;
  Values v;
};

// What the step should be, from the same initial weights.
class Expected {
 public:
  Expected(const Config& config, const ParameterPlan& plan, std::map<std::string, Values> weights)
      : config_(config),
        tiny_(config.model, 2, 12, DType::f64, Device::cpu),
        weights_(std::move(weights)),
        dataset_(open_dataset(config.data, 12, {})),
        loader_(dataset_.sources, 12, 3) {
    for (const LogicalParameter& parameter : plan.logical) {
      moments_[parameter.name] = {Values(weights_.at(parameter.name).size()),
                                  Values(weights_.at(parameter.name).size())};
    }
  }

  const std::map<std::string, Values>& weights() const { return weights_; }

  StepResult step(std::int64_t step) {
    const ParameterPlan& plan = tiny_.parameters().plan();
    for (const LogicalParameter& parameter : plan.logical) {
      const Values& values = weights_.at(parameter.name);
      for (std::size_t i = 0; i < values.size(); ++i) {
        tiny_.set_weight(parameter, static_cast<std::int64_t>(i), values[i]);
      }
    }
    std::map<std::string, Values> gradients;
    const StepResult result = differentiate(step, gradients);
    const double clip = std::min(1.0, 2.4 / (result.grad_norm + 1e-6));
    const auto power = static_cast<double>(step);
    for (const LogicalParameter& parameter : plan.logical) {
      const bool is_norm = parameter.name.find("norm") != std::string::npos;
      Values& w = weights_.at(parameter.name);
      Moments& moments = moments_.at(parameter.name);
      for (std::size_t i = 0; i < w.size(); ++i) {
        const double g = clip * gradients.at(parameter.name)[i];
        moments.m[i] = 0.7 * moments.m[i] + 0.3 * g;
        moments.v[i] = 0.9 * moments.v[i] + 0.1 * g * g;
        const double m = moments.m[i] / (1 - std::pow(0.7, power));
        const double v = moments.v[i] / (1 - std::pow(0.9, power));
        w[i] -= learning_rate_of(step) * (m / (std::sqrt(v) + 1e-3) + (is_norm ? 0 : 0.3) * w[i]);
      }
    }
    return result;
  }

 private:
  // Six samples of twelve tokens, in three micro-batches of two.
  StepResult differentiate(std::int64_t step, std::map<std::string, Values>& gradients) {
    std::vector<std::int32_t> tokens(6 * 12);
    std::vector<std::int32_t> targets(6 * 12);
    std::vector<std::int32_t> positions(6 * 12);
    std::int64_t num_targets = 0;
    for (std::size_t i = 0; i < 6; ++i) {
      const std::size_t at = 12 * i;
      num_targets += loader_.sample(static_cast<std::uint64_t>(6 * (step - 1)) + i,
                                    {.tokens_S = {&tokens[at], 12},
                                     .targets_S = {&targets[at], 12},
                                     .position_S = {&positions[at], 12}});
    }
    tiny_.scales = {.target = 1.0F / static_cast<float>(num_targets),
                    .sequence = 1.0F / 6,
                    .token = 1.0F / (6 * 12),
                    .balance = 0.3F,
                    .router_z = 0.05F};
    StepResult result;
    for (std::size_t i = 0; i < 3; ++i) {
      const auto part = [&](const std::vector<std::int32_t>& all) {
        const auto begin = all.begin() + static_cast<std::ptrdiff_t>(24 * i);
        return std::vector<std::int32_t>(begin, begin + 24);
      };
      tiny_.load(part(tokens), part(targets), part(positions), std::vector<std::uint8_t>(24, 1));
      tiny_.total_loss_and_gradient();
      result.loss += tiny_.stat(Stat::loss);
      result.balance += tiny_.stat(Stat::balance);
      result.router_z += tiny_.stat(Stat::z);
      for (const LogicalParameter& parameter : tiny_.parameters().plan().logical) {
        const Values gradient = tiny_.gradient(parameter);
        Values& sum = gradients[parameter.name];
        sum.resize(gradient.size());
        std::transform(sum.begin(), sum.end(), gradient.begin(), sum.begin(), std::plus<>());
      }
    }
    double squares = 0;
    for (const auto& [name, sum] : gradients) {
      for (const double g : sum) {
        squares += g * g;
      }
    }
    result.grad_norm = std::sqrt(squares);
    return result;
  }

  Config config_;
  TinyModel tiny_;
  std::map<std::string, Values> weights_;
  std::map<std::string, Moments> moments_;
  Dataset dataset_;
  MixtureLoader loader_;
};

std::map<std::string, Values> weights_of(Trainer& trainer) {
  std::map<std::string, Values> result;
  for (const LogicalParameter& parameter : trainer.plan().parameters.logical) {
    result[parameter.name] = elements(trainer.parameters().logical_weights(parameter));
  }
  return result;
}

TEST(Step, IsWhatItsConfigSays) {
  omp_set_num_threads(1);
  const TemporaryDirectory directory;
  for (const std::string model : {"model.tie_embeddings=true", "model.tie_embeddings=false"}) {
    std::vector<std::string> overrides = kOverrides;
    overrides.push_back(model);
    const Config config = tiny_config(directory, overrides);
    Trainer trainer(config, {});
    Expected expected(config, trainer.plan().parameters, weights_of(trainer));
    bool clips = false;
    bool does_not_clip = false;
    for (std::int64_t step = 1; step <= kSteps; ++step) {
      SCOPED_TRACE(model + ", step " + std::to_string(step));
      const StepResult wanted = expected.step(step);
      const StepResult actual = trainer.step();
      // Scales and coefficients are f32 in both; all else rounds in f64.
      EXPECT_NEAR(actual.loss, wanted.loss, 1e-11);
      EXPECT_NEAR(actual.balance, wanted.balance, 1e-11);
      EXPECT_NEAR(actual.router_z, wanted.router_z, 1e-11);
      EXPECT_NEAR(actual.grad_norm, wanted.grad_norm, 1e-10 * wanted.grad_norm);
      EXPECT_EQ(actual.tokens, 6 * 12);
      clips = clips || wanted.grad_norm > 2.4;
      does_not_clip = does_not_clip || wanted.grad_norm < 2.4;
      for (const auto& [name, values] : weights_of(trainer)) {
        const Values& wanted_values = expected.weights().at(name);
        for (std::size_t i = 0; i < values.size(); ++i) {
          ASSERT_NEAR(values[i], wanted_values[i], 1e-9) << name << "[" << i << "]";
        }
      }
    }
    EXPECT_TRUE(clips && does_not_clip) << "the clip of the test bends no step, or all";
  }
}

// The mean over all targets of the windows: each window of a micro-batch, as many as are asked for or
// as there are.
TEST(Validation, IsTheMeanOverTheTargetsOfItsWindows) {
  omp_set_num_threads(1);
  const TemporaryDirectory directory;
  for (const std::int64_t batches : {std::int64_t{2}, std::int64_t{0}}) {
    const Config config = tiny_config(directory,
                                      {"precision.compute=f64",
                                       "batch.micro_batch=3",
                                       "batch.global_batch=6",
                                       "batch.sequence_length=12",
                                       "data.held_out=0.01",
                                       "metrics.validate_batches=" + std::to_string(batches)});
    Trainer trainer(config, {});
    trainer.step();  // whose losses are none of validation's

    TinyModel tiny(config.model, 1, 12, DType::f64, Device::cpu);
    for (const LogicalParameter& parameter : trainer.plan().parameters.logical) {
      const Values values = elements(trainer.parameters().logical_weights(parameter));
      for (std::size_t i = 0; i < values.size(); ++i) {
        tiny.set_weight(parameter, static_cast<std::int64_t>(i), values[i]);
      }
    }
    const Dataset dataset = open_dataset(config.data, 12, {});
    const ValidationLoader loader(*dataset.validation[0].stream, dataset.validation[0].range, 12);
    ASSERT_GT(loader.num_samples(), 6U);
    ASSERT_NE(loader.num_samples() % 3, 0U)
        << "the last micro-batch has windows that are not there";
    const std::uint64_t num_windows = batches == 0 ? loader.num_samples() : 6;
    double sum = 0;
    std::int64_t num_targets = 0;
    for (std::uint64_t i = 0; i < num_windows; ++i) {
      std::vector<std::int32_t> tokens(12);
      std::vector<std::int32_t> targets(12);
      std::vector<std::int32_t> positions(12);
      num_targets +=
          loader.sample(i, {.tokens_S = tokens, .targets_S = targets, .position_S = positions});
      std::vector<std::uint8_t> valid;
      for (const std::int32_t token : tokens) {
        valid.push_back(token != config.model.pad_id ? 1 : 0);
      }
      tiny.scales = {.target = 1};
      tiny.load(tokens, targets, positions, valid);
      tiny.total_loss();
      sum += tiny.stat(Stat::loss);
    }
    const double expected = sum / static_cast<double>(num_targets);
    // A target's weight is f32.
    EXPECT_NEAR(trainer.validation_loss(), expected, 1e-6 * expected) << batches << " batches";
    EXPECT_EQ(trainer.validation_loss(), trainer.validation_loss());
  }
}

// A weight that is rounded to bf16 begins as its master, and a step moves it by no more than the
// learning rate and a rounding.
TEST(Step, MovesMasterWeightsFromWhereTheWeightsAre) {
  const TemporaryDirectory directory;
  Trainer trainer(tiny_config(directory, {"precision.compute=bf16", "schedule.warmup_steps=0"}),
                  {});
  std::map<std::string, std::vector<float>> before;
  const auto visit = [&](const auto& use) {
    for (const LogicalParameter& parameter : trainer.plan().parameters.logical) {
      const TensorView view = trainer.parameters().logical_weights(parameter);
      if (view.dtype == DType::bf16) {
        use(parameter.name, view);
      }
    }
  };
  visit([&](const std::string& name, const TensorView& view) {
    for (std::int64_t i = 0; i < view.num_elements(); ++i) {
      before[name].push_back(static_cast<float>(view.as<bf16>()[i]));
    }
  });
  trainer.step();
  visit([&](const std::string& name, const TensorView& view) {
    for (std::size_t i = 0; i < before.at(name).size(); ++i) {
      const float old = before[name][i];
      // In the first step |m / sqrt(v)| is at most 1; the decay is a tenth of the weight.
      const float most = 4e-3F * (1.01F + 0.1F * std::abs(old)) + std::abs(old) / 128;
      ASSERT_NEAR(static_cast<float>(view.as<bf16>()[i]), old, most) << name << "[" << i << "]";
    }
  });
}

}  // namespace
}  // namespace memphis::test
