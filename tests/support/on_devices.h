// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <gtest/gtest.h>

#include "csrc/core/device.h"

namespace memphis::test {

// A test that runs on the CPU and on the GPU, which is skipped with the reason where there is none.
// Instantiated with testing::Values(Device::cpu, Device::cuda) and name_of_device.
class OnDevices : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (!device_available(GetParam())) {
      GTEST_SKIP() << device_unavailable_reason();
    }
  }
};

inline std::string name_of_device(const testing::TestParamInfo<Device>& device) {
  return std::string(name_of(device.param));
}

}  // namespace memphis::test
