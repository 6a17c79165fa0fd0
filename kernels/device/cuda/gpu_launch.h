// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <cuda_runtime.h>

#include "csrc/core/cuda_check.h"
#include "kernels/launch.h"

namespace memphis::kernels {

// The kernel may be launched with so much dynamic shared memory on this thread's GPU from here on.
// Any thread calls. What was asked for is kept: a launch like one before asks the runtime for
// nothing but which GPU it is.
void allow_shared(const void* kernel, std::size_t dynamic_bytes);

// Arguments are converted to the kernel's parameter types here, at the call, so that an int given
// for an int64_t is widened and not read past its end.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& shape, const Arguments&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument a parameter");
  if (!check_launch(shape)) {
    return;
  }
  if (shape.shared_bytes > 0) {
    allow_shared(reinterpret_cast<const void*>(kernel), shape.shared_bytes);
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
