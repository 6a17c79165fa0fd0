// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>

#include "csrc/core/device.h"
#include "csrc/core/dtype.h"

namespace memphis::bench {

// What one call must move and do at least: each input read once, each output written once.
struct OpCost {
  double bytes = 0;
  double flops = 0;  // 0: memory bound, only bytes are reported
};

// One benchmark of `memphis bench kernels`. `setup` allocates the operands (random data, never
// zeros) and returns the call to time; what it captures is freed after the case. Registered from a
// static initialiser in <op>_bench.cpp, over the case table that the op's test reads:
//   const bool registered = [] {
//     for (const auto& c : bench_cases()) register_op_benchmark({...});
//     return true;
//   }();
struct OpBenchmark {
  std::string op;     // "rmsnorm_forward"
  std::string shape;  // "T=8192 D=6144"
  Device device;
  DType dtype;
  OpCost cost;
  std::function<std::function<void(Stream)>()> setup;
};
void register_op_benchmark(OpBenchmark benchmark);

}  // namespace memphis::bench
