// SPDX-License-Identifier: Apache-2.0
//
// The gradient of the whole model, auxiliary losses included, against central differences in double
// precision: every parameter, at least twenty elements of each.
#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>
#include <omp.h>

#include "csrc/core/rng.h"
#include "tests/support/tiny_model.h"

namespace memphis::test {
namespace {

constexpr std::int64_t kElementsPerParameter = 20;
// Balances the truncation of the difference, O(step^2), against its rounding, O(1e-16 / step).
constexpr double kStep = 1e-5;
constexpr double kRelative = 1e-3;

// Half of the elements are those with the largest gradients, half are drawn.
std::vector<std::int64_t> chosen_elements(const std::vector<double>& gradient, const char* name) {
  std::vector<std::int64_t> order(gradient.size());
  for (std::size_t i = 0; i < order.size(); ++i) {
    order[i] = static_cast<std::int64_t>(i);
  }
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return std::abs(gradient[static_cast<std::size_t>(a)]) >
           std::abs(gradient[static_cast<std::size_t>(b)]);
  });
  const CounterRng rng(3, name);
  std::vector<std::int64_t> chosen(order.begin(), order.begin() + kElementsPerParameter / 2);
  for (std::int64_t i = 0; i < kElementsPerParameter / 2; ++i) {
    const std::uint64_t rest = gradient.size() - kElementsPerParameter / 2;
    chosen.push_back(
        order[kElementsPerParameter / 2 + rng.word64(static_cast<std::uint64_t>(i)) % rest]);
  }
  return chosen;
}

void expect_gradient_is_derivative(const ModelConfig& config) {
  omp_set_num_threads(1);  // thousands of passes over 30 tokens: waking threads would cost more
  TinyModel tiny(config, 3, 10, DType::f64, Device::cpu);
  tiny.load_random_batch(11);
  const double loss = tiny.total_loss_and_gradient();
  EXPECT_DOUBLE_EQ(loss, tiny.total_loss());
  for (const LogicalParameter& parameter : tiny.parameters().plan().logical) {
    const std::vector<double> gradient = tiny.gradient(parameter);
    double largest = 0;
    for (const double value : gradient) {
      largest = std::max(largest, std::abs(value));
    }
    EXPECT_GT(largest, 0) << parameter.name << " has no gradient at all";
    for (const std::int64_t index : chosen_elements(gradient, parameter.name.c_str())) {
      const double value = tiny.weight(parameter, index);
      tiny.set_weight(parameter, index, value + kStep);
      const double above = tiny.total_loss();
      tiny.set_weight(parameter, index, value - kStep);
      const double below = tiny.total_loss();
      tiny.set_weight(parameter, index, value);
      const double difference = (above - below) / (2 * kStep);
      // Relative to the element, or to a thousandth of the parameter's largest for tiny ones.
      const double scale = std::max(std::abs(difference), 1e-3 * largest);
      EXPECT_LE(std::abs(gradient[static_cast<std::size_t>(index)] - difference), kRelative * scale)
          << parameter.name << "[" << index << "]: gradient "
          << gradient[static_cast<std::size_t>(index)] << ", difference " << difference;
    }
  }
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
    for (std::int64_t i = 0; i < parameter.spec.num_elements(); ++i) {
      exact.set_weight(parameter, i, single.weight(parameter, i));
    }
  }
  single.load_random_batch(5);
  exact.load_random_batch(5);
  const double exact_loss = exact.total_loss_and_gradient();
  EXPECT_NEAR(single.total_loss_and_gradient(), exact_loss, 1e-6 * exact_loss);
  for (const LogicalParameter& parameter : single.parameters().plan().logical) {
    const std::vector<double> actual = single.gradient(parameter);
    const std::vector<double> expected = exact.gradient(parameter);
    double error = 0;
    double size = 0;
    for (std::size_t i = 0; i < actual.size(); ++i) {
      error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
      size += expected[i] * expected[i];
    }
    EXPECT_LE(std::sqrt(error), 1e-4 * std::sqrt(size)) << parameter.name;
  }
}

}  // namespace
}  // namespace memphis::test
