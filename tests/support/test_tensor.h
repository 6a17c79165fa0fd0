// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/rng.h"
#include "csrc/core/tensor.h"

namespace memphis::test {

// A tensor that a test owns, on either device, filled from and read back as doubles.
class TestTensor {
 public:
  // Poisoned, so that an element which an op forgets to write is found: NaN, or the largest
  // integer.
  TestTensor(const TensorSpec& spec, Device device);
  // Filled; `values` are rounded to the dtype.
  TestTensor(const TensorSpec& spec, Device device, const std::vector<double>& values);
  ~TestTensor();
  TestTensor(TestTensor&& other) noexcept;
  TestTensor& operator=(TestTensor&&) = delete;
  TestTensor(const TestTensor&) = delete;
  TestTensor& operator=(const TestTensor&) = delete;

  TensorView view() const { return view_; }
  operator TensorView() const { return view_; }

  void assign(const std::vector<double>& values);
  // Waits for `stream` first.
  std::vector<double> values(Stream stream) const;
  // Raw bytes, for comparisons of bits.
  std::vector<std::byte> bytes(Stream stream) const;

 private:
  TensorView view_;
};

// Normal values of mean 0, a pure function of (seed, name, index).
std::vector<double> random_normal(std::int64_t count,
                                  std::string_view name,
                                  double stddev = 1.0,
                                  std::uint64_t seed = 1);
// Integers in [low, high).
std::vector<double> random_integers(std::int64_t count,
                                    std::string_view name,
                                    std::int64_t low,
                                    std::int64_t high,
                                    std::uint64_t seed = 1);

// What `values` become when they are stored as `dtype`: the inputs that an op really sees.
std::vector<double> rounded_to(DType dtype, std::vector<double> values);

// The devices and dtypes that every op case runs on, and their name in a test's output. A GPU case
// skips visibly, with the reason, where there is no GPU:  if (skip(target)) GTEST_SKIP() << reason;
struct Target {
  Device device;
  DType dtype;
};
std::vector<Target> all_targets();  // cpu f64, cpu f32, cpu bf16, cuda f32, cuda bf16
std::string name_of(const Target& target);
// Empty if the target can run here; else why not.
std::string skip_reason(const Target& target);

}  // namespace memphis::test
