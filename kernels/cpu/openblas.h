// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace memphis::kernels::cpu {

// The yardstick of CPU speed: OpenBLAS's sgemm, c = a b of n x n matrices, on `num_threads` of its
// own threads. Returns FLOP/s, the best of `repeats`.
double measure_openblas_sgemm(std::int64_t n, int num_threads, int repeats);

// "OpenBLAS 0.3.21 for Haswell": the version, and the processor whose kernels it has taken.
std::string describe_openblas();

}  // namespace memphis::kernels::cpu
