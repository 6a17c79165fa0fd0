// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include "csrc/core/cuda_check.h"
#include "kernels/launch.h"

namespace memphis::kernels {

// Arguments are converted to the kernel's parameter types here, at the call, so that an int given
// for an int64_t is widened and not read past its end.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& shape, const Arguments&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument a parameter");
  if (!check_launch(shape)) {
    return;
  }
  if (shape.shared_bytes > 0) {
    cudaFuncAttributes attributes{};
    MEMPHIS_CUDA(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)));
    const std::size_t opt_in = shared_opt_in(attributes.sharedSizeBytes, shape.shared_bytes);
    // Of the function, not of the launch: never lowered, as a graph may hold a launch with more. What
    // it has without asking is for static and dynamic memory together, and not enough here.
    const auto allowed = static_cast<std::size_t>(attributes.maxDynamicSharedSizeBytes);
    if (opt_in != 0 && (allowed <= kSharedWithoutOptIn || allowed < opt_in)) {
      MEMPHIS_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(opt_in)));
    }
  }
  const auto dim = [](const Dim3& d) {
    return dim3(static_cast<unsigned>(d.x), static_cast<unsigned>(d.y), static_cast<unsigned>(d.z));
  };
  cudaLaunchConfig_t config{};
  config.gridDim = dim(shape.grid);
  config.blockDim = dim(shape.block);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(shape.stream.handle);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  if (shape.cluster > 1) {
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  MEMPHIS_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace memphis::kernels
