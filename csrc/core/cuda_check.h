// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

namespace memphis {

// Throws Error (PreflightError when memory ran out) naming the error, the call and its place;
// clears the error first, so that the next call does not report it again.
void cuda_check(cudaError_t status,
                const char* call,
                const char* file = __builtin_FILE(),
                int line = __builtin_LINE());

}  // namespace memphis

#define MEMPHIS_CUDA(call) ::memphis::cuda_check((call), #call)
