// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <memory>
#include <vector>

#include "bench/filled_tensor.h"
#include "bench/op_benchmark.h"

namespace memphis::bench {

// An operand that a benchmark's call captures and frees with itself. Random, but repeated every
// 2^16 elements: to draw them all would take longer than to time them. `positive` takes magnitudes,
// for what an op takes the root of.
inline std::shared_ptr<FilledTensor> random_operand(const TensorSpec& spec,
                                                    Device device,
                                                    bool positive = false) {
  static const std::vector<double> kPattern = random_normal(1 << 16, "benchmark");
  std::vector<double> values(static_cast<std::size_t>(spec.num_elements()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double value = kPattern[i % kPattern.size()];
    values[i] = positive ? std::abs(value) : value;
  }
  return std::make_shared<FilledTensor>(spec, device, values);
}

// What benchmarks run on: the CPU in f32, which it trains in, and the GPU in both of its dtypes.
inline std::vector<Target> benchmark_targets(bool fits_cpu) {
  std::vector<Target> targets = {{Device::cuda, DType::bf16}, {Device::cuda, DType::f32}};
  if (fits_cpu) {
    targets.push_back({Device::cpu, DType::f32});
  }
  return targets;
}

}  // namespace memphis::bench
