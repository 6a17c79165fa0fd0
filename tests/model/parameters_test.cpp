// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/parameters.h"

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/tiny_model.h"

namespace memphis::test {
namespace {

using Weights = std::map<std::string, std::vector<float>>;

Weights initial_weights(const ModelConfig& config, std::uint64_t seed) {
  const OwnedStream stream(Device::cpu);
  Parameters parameters(
      plan_parameters(config, DType::f32), DType::f32, Device::cpu, Parameters::Gradients::none);
  parameters.initialise(seed, stream.view());
  Weights weights;
  for (const LogicalParameter& parameter : parameters.plan().logical) {
    const TensorView view = parameters.logical_weights(parameter);
    const float* begin = view.as<float>();
    weights[parameter.name].assign(begin, begin + view.num_elements());
  }
  return weights;
}

bool is_norm(const std::string& name) {
  return name.ends_with("norm.weight");
}
bool is_router(const std::string& name) {
  return name.ends_with("block_sparse_moe.gate.weight");
}

TEST(InitialWeights, DependOnSeedNameAndIndexAlone) {
  ModelConfig deeper = tiny_grok2();
  deeper.num_layers += 2;
  deeper.num_experts += 2;
  const Weights weights = initial_weights(tiny_grok2(), 7);
  const Weights of_deeper = initial_weights(deeper, 7);
  const Weights of_other_seed = initial_weights(tiny_grok2(), 8);
  for (const auto& [name, values] : weights) {
    const std::vector<float>& same = of_deeper.at(name);  // a router gains rows at its end
    ASSERT_GE(same.size(), values.size()) << name;
    EXPECT_EQ(std::memcmp(same.data(), values.data(), values.size() * sizeof(float)), 0) << name;
    EXPECT_EQ(values == of_other_seed.at(name), is_norm(name)) << name;
  }
}

// Mean and standard deviation within five standard errors, sigma / sqrt(n) and sigma / sqrt(2 n).
void expect_normal(const std::string& name, const std::vector<float>& values, double sigma) {
  double sum = 0;
  double squares = 0;
  for (const float value : values) {
    sum += static_cast<double>(value);
    squares += static_cast<double>(value) * static_cast<double>(value);
  }
  const auto count = static_cast<double>(values.size());
  EXPECT_NEAR(sum / count, 0, 5 * sigma / std::sqrt(count)) << name;
  EXPECT_NEAR(std::sqrt(squares / count), sigma, 5 * sigma / std::sqrt(2 * count)) << name;
}

TEST(InitialWeights, HaveTheSpreadOfTheirScheme) {
  for (const InitScheme scheme : {InitScheme::fan_in, InitScheme::normal}) {
    ModelConfig config = tiny_grok2();
    config.init = scheme;
    config.init_std = 0.05;
    const Weights weights = initial_weights(config, 7);
    for (const LogicalParameter& parameter : plan_parameters(config, DType::f32).logical) {
      const std::vector<float>& values = weights.at(parameter.name);
      if (is_norm(parameter.name)) {
        EXPECT_EQ(values, std::vector<float>(values.size(), 1.0F)) << parameter.name;
        continue;
      }
      ASSERT_EQ(parameter.spec.num_dims, 2) << parameter.name;
      const auto fan_in = static_cast<double>(parameter.spec.dims[1]);
      const double of_matrices =
          scheme == InitScheme::normal ? config.init_std : 1 / std::sqrt(fan_in);
      expect_normal(
          parameter.name, values, is_router(parameter.name) ? config.router_init_std : of_matrices);
    }
  }
}

}  // namespace
}  // namespace memphis::test
