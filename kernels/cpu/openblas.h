// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace memphis::kernels::cpu {

// The yardstick of CPU speed: OpenBLAS's sgemm, c = a b of n x n matrices, on `num_threads` of its
// own threads. Returns FLOP/s, the best of `repeats`.
double measure_openblas_sgemm(std::int64_t n, int num_threads, int repeats);

}  // namespace memphis::kernels::cpu
