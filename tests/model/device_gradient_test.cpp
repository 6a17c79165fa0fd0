// SPDX-License-Identifier: Apache-2.0
//
// Loss and gradient of a whole model on Device::cuda (a GPU, or the simulated one) are as close to
// the exact ones as the CPU's in the same dtype.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/tiny_model.h"
#include "tests/support/tolerance.h"

namespace memphis::test {
namespace {

// The same weights and batch three times: exact, as the CPU has them in `compute`, and as the GPU has.
struct Models {
  Models(const ModelConfig& config, std::int64_t sequence_length, DType compute) {
    const auto make = [&](DType dtype, Device on) {
      auto model = std::make_unique<TinyModel>(config, 2, sequence_length, dtype, on);
      model->load_random_batch(3);
      return model;
    };
    exact = make(DType::f64, Device::cpu);
    host = make(compute, Device::cpu);
    device = make(compute, Device::cuda);
    for (const LogicalParameter& parameter : parameters()) {  // the weights as `compute` holds them
      exact->set_weights(parameter, host->weights(parameter));
    }
  }

  const std::vector<LogicalParameter>& parameters() const {
    return exact->parameters().plan().logical;
  }
  double error(TinyModel& model, const LogicalParameter& parameter) const {
    return relative_error(model.gradient(parameter), exact->gradient(parameter));
  }
  // As in close_to, twice the worst that the CPU does; relative to each parameter's gradient, as a
  // single one may be exact by luck.
  void expect_gradients_as_close_as_the_cpus() const {
    double worst = 0;
    for (const LogicalParameter& parameter : parameters()) {
      worst = std::max(worst, error(*host, parameter));
    }
    for (const LogicalParameter& parameter : parameters()) {
      // Infinite where the exact gradient is zero, of an expert that no token chose, and this is
      // not.
      EXPECT_LE(error(*device, parameter), 2 * worst) << parameter.name;
    }
  }

  std::unique_ptr<TinyModel> exact;
  std::unique_ptr<TinyModel> host;
  std::unique_ptr<TinyModel> device;
};

// Routing decides by comparing: the three models choose the same in f32.
void expect_as_close_as_the_cpu(const ModelConfig& config) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const Models models(config, 11, DType::f32);
  const Rounding rounding = effect_of_rounding(*models.exact, DType::f32);
  const double exact_loss = models.exact->total_loss_and_gradient();
  EXPECT_NEAR(models.host->total_loss_and_gradient(), exact_loss, rounding.loss);
  EXPECT_NEAR(models.device->total_loss_and_gradient(), exact_loss, rounding.loss);
  for (std::size_t p = 0; p < models.parameters().size(); ++p) {
    EXPECT_LE(models.error(*models.host, models.parameters()[p]), rounding.gradients[p])
        << models.parameters()[p].name << ": the CPU has chosen other experts; take another batch";
  }
  models.expect_gradients_as_close_as_the_cpus();
}

TEST(DeviceGradient, OfGrok1IsAsCloseAsTheCpus) {
  expect_as_close_as_the_cpu(tiny_grok1());
}

TEST(DeviceGradient, OfGrok2IsAsCloseAsTheCpus) {
  expect_as_close_as_the_cpu(tiny_grok2());
}

// Heads of the width that the kernels for Hopper's tensor cores take, over more than one tile of
// queries. In bf16 two orders of summation would choose other experts for some token, and agree on
// nothing: here each token goes to all.
TEST(DeviceGradient, OfWideHeadsInBf16IsAsCloseAsTheCpus) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  ModelConfig config = tiny_grok1();
  config.num_layers = 1;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 128;
  config.attention_multiplier = 1 / std::sqrt(128.0);
  config.num_experts = 2;
  config.max_sequence_length = 72;
  const Models models(config, 72, DType::bf16);
  const double exact_loss = models.exact->total_loss_and_gradient();
  const double host_error = std::abs(models.host->total_loss_and_gradient() - exact_loss);
  // A loss is a mean of many, which the CPU may find by luck: at least a rounding is allowed.
  EXPECT_NEAR(models.device->total_loss_and_gradient(),
              exact_loss,
              std::max(2 * host_error, rounding_unit(DType::bf16) * exact_loss));
  models.expect_gradients_as_close_as_the_cpus();
}

}  // namespace
}  // namespace memphis::test
