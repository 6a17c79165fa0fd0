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

// False for an empty grid, which launches nothing. Throws ContractError if a launch exceeds what
// every device of sm_80 and newer allows.
bool check_launch(const Launch& launch);

constexpr std::int64_t ceil_div(std::int64_t numerator, std::int64_t denominator) {
  return (numerator + denominator - 1) / denominator;
}

}  // namespace memphis::kernels

// launch(kernel, Launch{…}, arguments…): from the dialect that the build chose, <gpu_launch.h> of
// device/cuda or of device/simt. It throws what check_launch throws and whatever the launch itself
// reports.
