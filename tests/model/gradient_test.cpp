// SPDX-License-Identifier: Apache-2.0
//
// The gradient of the whole model, auxiliary losses included, against central differences in double
// precision, within what is known of their errors: of every parameter, all elements of the small ones
// and at least twenty of the others.
#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>
#include <omp.h>

#include "csrc/core/rng.h"
#include "tests/support/finite_difference.h"
#include "tests/support/test_tensor.h"
#include "tests/support/tiny_model.h"

namespace memphis::test {
namespace {

// Norms and routers have fewer: a fault in one row of a router is in none of twenty elements.
constexpr std::int64_t kAllUpTo = 256;
constexpr std::int64_t kElementsOfOthers = 20;
// Short, because the loss jumps where a step sends a token to another expert.
constexpr double kStep = 0x1p-17;
// A difference that is known to no better than this, of the parameter's largest, says nothing.
constexpr double kVague = 1e-3;

// Half of the elements are those with the largest gradients, half are drawn.
std::vector<std::int64_t> chosen_elements(const std::vector<double>& gradient, const char* name) {
  std::vector<std::int64_t> order(gradient.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<std::int64_t>(i);
  }
  if (std::ssize(gradient) <= kAllUpTo) {
    return order;
  }
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return std::abs(gradient[static_cast<std::size_t>(a)]) >
           std::abs(gradient[static_cast<std::size_t>(b)]);
  });
  const CounterRng rng(2 + test_seed(), name);
  std::vector<std::int64_t> chosen(order.begin(), order.begin() + kElementsOfOthers / 2);
  for (std::int64_t i = 0; i < kElementsOfOthers / 2; ++i) {
    const std::uint64_t rest = gradient.size() - kElementsOfOthers / 2;
    chosen.push_back(
        order[kElementsOfOthers / 2 + rng.word64(static_cast<std::uint64_t>(i)) % rest]);
  }
  return chosen;
}

// Of the loss, where all weights move.
double noise_of_loss(TinyModel& tiny) {
  const std::vector<LogicalParameter>& parameters = tiny.parameters().plan().logical;
  std::vector<std::vector<double>> weights;
  for (const LogicalParameter& parameter : parameters) {
    weights.push_back(tiny.weights(parameter));
  }
  const auto move = [&](double offset) {
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      std::vector<double> moved = weights[p];
      for (std::size_t i = 0; i < moved.size(); ++i) {
        moved[i] += i % 2 == 0 ? offset : -offset;
      }
      tiny.set_weights(parameters[p], moved);
    }
  };
  const double noise = noise_of([&](double offset) {
    move(offset);
    return tiny.total_loss();
  });
  move(0);
  return noise;
}

void expect_gradient_is_derivative(const ModelConfig& config) {
  omp_set_num_threads(1);  // thousands of passes over 30 tokens: waking threads would cost more
  TinyModel tiny(config, 3, 10, DType::f64, Device::cpu);
  tiny.load_random_batch(11);
  const double loss = tiny.total_loss_and_gradient();
  EXPECT_DOUBLE_EQ(loss, tiny.total_loss());
  const double noise = noise_of_loss(tiny);
  int num_compared = 0;
  int num_vague = 0;
  for (const LogicalParameter& parameter : tiny.parameters().plan().logical) {
    const std::vector<double> gradient = tiny.gradient(parameter);
    double largest = 0;
    for (const double value : gradient) {
      largest = std::max(largest, std::abs(value));
    }
    EXPECT_GT(largest, 0) << parameter.name << " has no gradient at all";
    for (const std::int64_t index : chosen_elements(gradient, parameter.name.c_str())) {
      const double value = tiny.weight(parameter, index);
      const Derivative expected = derivative(
          [&](double offset) {
            tiny.set_weight(parameter, index, value + offset);
            return tiny.total_loss();
          },
          kStep,
          noise);
      tiny.set_weight(parameter, index, value);
      ++num_compared;
      if (expected.bound > kVague * largest) {
        ++num_vague;
        continue;
      }
      EXPECT_LE(std::abs(gradient[static_cast<std::size_t>(index)] - expected.value),
                expected.bound)
          << parameter.name << "[" << index << "]: gradient "
          << gradient[static_cast<std::size_t>(index)] << ", difference " << expected.value;
    }
  }
  EXPECT_LE(100 * num_vague, num_compared) << "differences that say nothing";
}

TEST(Gradient, Grok1EqualsCentralDifferences) {
  expect_gradient_is_derivative(tiny_grok1());
}

TEST(Gradient, Grok2EqualsCentralDifferences) {
  expect_gradient_is_derivative(tiny_grok2());
}

TEST(Gradient, MoreExpertsPerTokenAndNoPadId) {
  ModelConfig config = tiny_grok1();
  config.experts_per_token = 3;
  config.num_experts = 5;
  config.pad_id = -1;
  config.attention_cap = 0;
  expect_gradient_is_derivative(config);
}

// f32 and f64 run the same code; what differs is rounding alone.
TEST(Gradient, SinglePrecisionAgreesWithDouble) {
  TinyModel single(tiny_grok2(), 3, 10, DType::f32, Device::cpu);
  TinyModel exact(tiny_grok2(), 3, 10, DType::f64, Device::cpu);
  for (const LogicalParameter& parameter : single.parameters().plan().logical) {
    exact.set_weights(parameter, single.weights(parameter));
  }
  single.load_random_batch(5);
  exact.load_random_batch(5);
  const Rounding rounding = effect_of_rounding(exact, DType::f32);
  EXPECT_NEAR(single.total_loss_and_gradient(), exact.total_loss_and_gradient(), rounding.loss);
  const std::vector<LogicalParameter>& parameters = single.parameters().plan().logical;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    EXPECT_LE(relative_error(single.gradient(parameters[p]), exact.gradient(parameters[p])),
              rounding.gradients[p])
        << parameters[p].name;
  }
}

}  // namespace
}  // namespace memphis::test
