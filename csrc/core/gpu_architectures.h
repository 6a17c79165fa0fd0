// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace memphis {

// Why kernels that were compiled for `architectures`, CMAKE_CUDA_ARCHITECTURES with commas or
// semicolons, cannot run on a GPU, as an error text that names both and what to build for; empty if
// they can, or if the list does not say. `compute_capability` is 90 for 9.0. Source: CUDA
// programming guide, "Compute Capability and Streaming Multiprocessor Versions" and "Feature Set
// Compiler Targets"; CMake, CUDA_ARCHITECTURES.
std::string no_kernels_reason(std::string_view architectures,
                              std::string_view gpu_name,
                              int compute_capability);

}  // namespace memphis
