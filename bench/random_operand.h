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
  std::vector<double> values = kPattern;
  for (double& value : values) {
    value = positive ? std::abs(value) : value;
  }
  return std::make_shared<FilledTensor>(FilledTensor::repeated(spec, device, values));
}

// What benchmarks run on: the GPU in bf16, and what is no matter of minutes in f32 too, which the
// CPU trains in and a GPU is checked in.
inline std::vector<Target> benchmark_targets(bool fits_cpu) {
  std::vector<Target> targets = {{Device::cuda, DType::bf16}};
  if (fits_cpu) {
    targets.push_back({Device::cuda, DType::f32});
    targets.push_back({Device::cpu, DType::f32});
  }
  return targets;
}

}  // namespace memphis::bench
