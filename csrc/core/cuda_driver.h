// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include <cuda_runtime_api.h>

#include "csrc/core/cuda_check.h"
#include "csrc/core/error.h"

namespace memphis {

// A function of the CUDA driver, as the CUDA that is `since` has it, such as 12000. It is asked for
// at run time, as nothing links libcuda. PreflightError where the driver is older.
template <class Function>
Function* driver_function(const char* name, unsigned since) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  MEMPHIS_CUDA(cudaGetDriverEntryPointByVersion(name, &function, since, cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess) {
    throw PreflightError("the driver has no " + std::string(name) + " (it is older than CUDA " +
                         std::to_string(since / 1000) + "." + std::to_string(since % 1000 / 10) +
                         "); update it");
  }
  return reinterpret_cast<Function*>(function);
}

}  // namespace memphis
