// SPDX-License-Identifier: Apache-2.0
//
// Loss and gradient of a whole model on Device::cuda (a GPU, or the simulated one) are as close to
// the exact ones as the CPU's in f32.
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/tiny_model.h"
#include "tests/support/tolerance.h"

namespace memphis::test {
namespace {

double norm(const std::vector<double>& values) {
  return std::sqrt(std::inner_product(values.begin(), values.end(), values.begin(), 0.0));
}

std::vector<double> difference(std::vector<double> a, const std::vector<double>& b) {
  std::transform(a.begin(), a.end(), b.begin(), a.begin(), std::minus<>());
  return a;
}

// Routing decides by comparing: in bf16 two orders of summation would choose different experts for
// some token, and agree on nothing. In f32 the three models choose the same.
void expect_as_close_as_the_cpu(const ModelConfig& config) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const auto make = [&](DType compute, Device device) {
    auto model = std::make_unique<TinyModel>(config, 2, 11, compute, device);
    model->load_random_batch(3);
    return model;
  };
  const auto exact = make(DType::f64, Device::cpu);
  const auto host = make(DType::f32, Device::cpu);
  const auto device = make(DType::f32, Device::cuda);
  const auto& parameters = exact->parameters().plan().logical;
  for (const LogicalParameter& parameter : parameters) {  // the weights as f32 holds them
    for (std::int64_t i = 0; i < parameter.spec.num_elements(); ++i) {
      exact->set_weight(parameter, i, host->weight(parameter, i));
    }
  }

  const double exact_loss = exact->total_loss_and_gradient();
  const double host_loss = host->total_loss_and_gradient();
  const double device_loss = device->total_loss_and_gradient();
  EXPECT_TRUE(close_to({device_loss}, {exact_loss}, {host_loss}, DType::f32, 1));

  // As in close_to, twice the worst that the CPU does; relative to each parameter's gradient, as a
  // single one may be exact by luck.
  double worst_of_host = 0;
  for (const LogicalParameter& parameter : parameters) {
    const std::vector<double> gradient = exact->gradient(parameter);
    if (norm(gradient) == 0) {  // an expert that no token chose
      EXPECT_EQ(norm(device->gradient(parameter)), 0) << parameter.name;
      continue;
    }
    worst_of_host = std::max(
        worst_of_host, norm(difference(host->gradient(parameter), gradient)) / norm(gradient));
  }
  EXPECT_LT(worst_of_host, 1e-4) << "the CPU has chosen other experts: take another batch";
  for (const LogicalParameter& parameter : parameters) {
    const std::vector<double> gradient = exact->gradient(parameter);
    EXPECT_LE(norm(difference(device->gradient(parameter), gradient)),
              2 * worst_of_host * norm(gradient))
        << parameter.name;
  }
}

TEST(DeviceGradient, OfGrok1IsAsCloseAsTheCpus) {
  expect_as_close_as_the_cpu(tiny_grok1());
}

TEST(DeviceGradient, OfGrok2IsAsCloseAsTheCpus) {
  expect_as_close_as_the_cpu(tiny_grok2());
}

}  // namespace
}  // namespace memphis::test
