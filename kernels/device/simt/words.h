// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/device/simt/executor.h"
#include "kernels/device/simt/symbols.h"

// The words of CUDA C++ that kernels are written in, for g++. The one place that defines them.
// NOLINTBEGIN(cppcoreguidelines-macro-usage, bugprone-reserved-identifier)

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::memphis::kernels::simt::thread_index())
#define blockIdx (::memphis::kernels::simt::block_index())
#define blockDim (::memphis::kernels::simt::block_dim())
#define gridDim (::memphis::kernels::simt::grid_dim())

// A thread of the machine runs one block at a time, so what is local to it is shared by the block.
// The gap before each variable belongs to nobody: an index out of bounds lands in it.
#define MEMPHIS_SIMT_JOIN_(a, b) a##b
#define MEMPHIS_SIMT_JOIN(a, b) MEMPHIS_SIMT_JOIN_(a, b)
#define __shared__                                                                         \
  [[gnu::used]] static thread_local ::memphis::kernels::simt::SharedGap MEMPHIS_SIMT_JOIN( \
      shared_gap_, __COUNTER__);                                                           \
  [[gnu::used]] static thread_local

// NOLINTEND(cppcoreguidelines-macro-usage, bugprone-reserved-identifier)
