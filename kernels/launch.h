// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/core/device.h"

namespace memphis::kernels {

struct Dim3 {
  std::int64_t x = 1;
  std::int64_t y = 1;
  std::int64_t z = 1;
};

// How a kernel is launched: what a pure function chooses from shape and device.
struct Launch {
  Dim3 grid;
  Dim3 block;
  std::size_t shared_bytes = 0;  // dynamic
  Stream stream;
};

constexpr std::int64_t ceil_div(std::int64_t numerator, std::int64_t denominator) {
  return (numerator + denominator - 1) / denominator;
}

}  // namespace memphis::kernels

// launch(kernel, Launch{…}, arguments…): from the dialect that the build chose,
// device/cuda/gpu_launch.h. It throws ContractError if the launch exceeds a limit of the device and
// whatever the launch itself reports. An empty grid launches nothing.
