// SPDX-License-Identifier: Apache-2.0
//
// Loss and gradient of a whole model on Device::cuda (a GPU, or the simulated one) are as close to
// the exact ones as the CPU's in f32.
#include <algorithm>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/tiny_model.h"

namespace memphis::test {
namespace {

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
    exact->set_weights(parameter, host->weights(parameter));
  }

  const Rounding rounding = effect_of_rounding(*exact, DType::f32);
  const double exact_loss = exact->total_loss_and_gradient();
  EXPECT_NEAR(host->total_loss_and_gradient(), exact_loss, rounding.loss);
  EXPECT_NEAR(device->total_loss_and_gradient(), exact_loss, rounding.loss);

  // As in close_to, twice the worst that the CPU does; relative to each parameter's gradient, as a
  // single one may be exact by luck.
  double worst_of_host = 0;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    const double error =
        relative_error(host->gradient(parameters[p]), exact->gradient(parameters[p]));
    EXPECT_LE(error, rounding.gradients[p])
        << parameters[p].name << ": the CPU has chosen other experts; take another batch";
    worst_of_host = std::max(worst_of_host, error);
  }
  for (const LogicalParameter& parameter : parameters) {
    // Infinite where the exact gradient is zero, of an expert that no token chose, and this is not.
    EXPECT_LE(relative_error(device->gradient(parameter), exact->gradient(parameter)),
              2 * worst_of_host)
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
