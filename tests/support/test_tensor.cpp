// SPDX-License-Identifier: Apache-2.0
#include "tests/support/test_tensor.h"

namespace memphis::test {

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

}  // namespace memphis::test
