// SPDX-License-Identifier: Apache-2.0
#include "tests/support/test_tensor.h"

#include <cmath>
#include <limits>

namespace memphis::test {
namespace {

// Once the options are read.
class DataSeed final : public testing::Environment {
 public:
  void SetUp() override { set_data_seed(test_seed()); }
};

const testing::Environment* const g_data_seed =
    testing::AddGlobalTestEnvironment(new DataSeed);  // GoogleTest owns it

}  // namespace

std::uint64_t test_seed() {
  return 1 + static_cast<std::uint64_t>(testing::GTEST_FLAG(random_seed));
}

std::vector<Target> all_targets() {
  return {{Device::cpu, DType::f64},
          {Device::cpu, DType::f32},
          {Device::cpu, DType::bf16},
          {Device::cuda, DType::f32},
          {Device::cuda, DType::bf16}};
}

std::string skip_reason(const Target& target) {
  return target.device == Device::cpu ? "" : device_unavailable_reason();
}

std::vector<double> without_subnormals(std::vector<double> values) {
  for (double& value : values) {
    value = std::abs(value) < std::numeric_limits<float>::min() ? 0.0 : value;
  }
  return values;
}

}  // namespace memphis::test
