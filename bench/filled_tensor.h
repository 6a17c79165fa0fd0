// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/core/rng.h"
#include "csrc/core/tensor.h"

namespace memphis::bench {

// A tensor that owns its memory, on either device, filled from and read back as doubles: an operand of
// a benchmark or of a test.
class FilledTensor {
 public:
  // Poisoned, so that an element which an op forgets to write is found: NaN, or the largest
  // integer.
  FilledTensor(const TensorSpec& spec, Device device);
  // Filled; `values` are rounded to the dtype.
  FilledTensor(const TensorSpec& spec, Device device, const std::vector<double>& values);
  // Filled with `values` over and over, on the device: the host would take minutes for what a GPU's
  // kernels are timed on.
  static FilledTensor repeated(const TensorSpec& spec,
                               Device device,
                               const std::vector<double>& values);
  ~FilledTensor();
  FilledTensor(FilledTensor&& other) noexcept;
  FilledTensor& operator=(FilledTensor&&) = delete;
  FilledTensor(const FilledTensor&) = delete;
  FilledTensor& operator=(const FilledTensor&) = delete;

  TensorView view() const { return view_; }
  operator TensorView() const { return view_; }

  void assign(const std::vector<double>& values);
  // Waits for `stream` first.
  std::vector<double> values(Stream stream) const;
  // Raw bytes, for comparisons of bits.
  std::vector<std::byte> bytes(Stream stream) const;

 private:
  explicit FilledTensor(const TensorView& view) : view_(view) {}

  TensorView view_;
};

// `values`, rounded to the dtype, over and over, as many as the elements of `view`; copied on its
// device. Waits for `stream`.
void fill_repeated(const TensorView& view, const std::vector<double>& values, Stream stream);

// The seed where none is given: 1, unless a test sets another before it draws.
std::uint64_t data_seed();
void set_data_seed(std::uint64_t seed);

// Normal values of mean 0, a pure function of (seed, name, index).
std::vector<double> random_normal(std::int64_t count,
                                  std::string_view name,
                                  double stddev = 1.0,
                                  std::uint64_t seed = data_seed());
// Integers in [low, high).
std::vector<double> random_integers(std::int64_t count,
                                    std::string_view name,
                                    std::int64_t low,
                                    std::int64_t high,
                                    std::uint64_t seed = data_seed());

// What `values` become when they are stored as `dtype`: the inputs that an op really sees.
std::vector<double> rounded_to(DType dtype, std::vector<double> values);

// Where a case runs, and its name in the output of a test.
struct Target {
  Device device;
  DType dtype;
};
std::string name_of(const Target& target);

}  // namespace memphis::bench
