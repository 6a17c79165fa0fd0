// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace memphis {

// Ranges of the calling thread that NVIDIA's profilers show (NVTX), one within another. In a build
// without CUDA nothing, and without a profiler a few nanoseconds each.
void begin_profiler_range(const char* name, int detail);  // "layer 3": detail -1: none
void end_profiler_range();

}  // namespace memphis
