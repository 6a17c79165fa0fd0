// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <string>

#include <cuda_runtime.h>

#include "csrc/core/cuda_check.h"
#include "csrc/core/error.h"
#include "kernels/launch.h"

namespace memphis::kernels {

// Arguments are converted to the kernel's parameter types here, at the call, so that an int given
// for an int64_t is widened and not read past its end.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& shape, const Arguments&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument a parameter");
  constexpr std::int64_t kMaxGridX = 2147483647;
  constexpr std::int64_t kMaxGridYZ = 65535;
  constexpr std::int64_t kMaxThreads = 1024;
  constexpr std::size_t kSharedWithoutOptIn = 48 * 1024;
  const Dim3& grid = shape.grid;
  const Dim3& block = shape.block;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
    return;
  }
  require(grid.x <= kMaxGridX && grid.y <= kMaxGridYZ && grid.z <= kMaxGridYZ,
          "grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
              std::to_string(grid.z) + " blocks exceeds the device's limits; split the operands");
  require(block.x * block.y * block.z <= kMaxThreads, "a block has at most 1024 threads");
  if (shape.shared_bytes > kSharedWithoutOptIn) {
    MEMPHIS_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shape.shared_bytes)));
  }
  const auto dim = [](const Dim3& d) {
    return dim3(static_cast<unsigned>(d.x), static_cast<unsigned>(d.y), static_cast<unsigned>(d.z));
  };
  cudaLaunchConfig_t config{};
  config.gridDim = dim(grid);
  config.blockDim = dim(block);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(shape.stream.handle);
  MEMPHIS_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace memphis::kernels
