// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "csrc/core/device.h"
#include "csrc/core/dtype.h"
#include "csrc/core/error.h"

namespace memphis {

// One legend for the letters that follow a tensor's name, in this order of dims, everywhere:
//   B  sequences            S  positions             T  tokens, B * S
//   D  model width          N  query heads           G  key/value heads
//   C  heads of q, k and v together, N + 2G          H  head width
//   E  experts              K  experts per token     R  routed rows, T * K
//   F  expert width         V  vocabulary            L  layers
//   P  partial sums           U  tokens that keys are of, where they are not the T of the queries
// `x_TD` is [T, D], row-major. A gradient is `d` + name. Where ranks share a tensor out, its dims
// are those of this rank: csrc/plan/dims.h.

constexpr int kMaxDims = 4;

// The dims and type of a tensor that does not exist yet: what the plan computes with.
struct TensorSpec {
  std::array<std::int64_t, kMaxDims> dims{};
  int num_dims = 0;
  DType dtype = DType::f32;

  TensorSpec() = default;
  TensorSpec(std::initializer_list<std::int64_t> dims_, DType dtype_);

  std::int64_t num_elements() const;
  std::size_t bytes() const { return static_cast<std::size_t>(num_elements()) * size_of(dtype); }
  bool present() const { return num_dims > 0; }
};

// A contiguous row-major tensor that somebody else owns. Copying copies the view. A
// default-constructed view is absent (an optional operand that was left out), which is not the same
// as a tensor with no elements.
struct TensorView {
  void* data = nullptr;
  std::array<std::int64_t, kMaxDims> dims{};
  int num_dims = 0;
  DType dtype = DType::f32;
  Device device = Device::cpu;

  TensorView() = default;
  TensorView(void* data_, const TensorSpec& spec, Device device_);
  TensorView(void* data_, std::initializer_list<std::int64_t> dims_, DType dtype_, Device device_);

  bool present() const { return num_dims > 0; }
  std::int64_t dim(int index) const { return dims[static_cast<std::size_t>(index)]; }
  std::int64_t num_elements() const;
  std::size_t bytes() const { return static_cast<std::size_t>(num_elements()) * size_of(dtype); }
  TensorSpec spec() const;

  // The elements as T; ContractError if they are something else. The pointer is valid on `device`.
  template <class T>
  T* as() const {
    require(dtype == dtype_of<T>(), "a tensor is read as another dtype than it has");
    return static_cast<T*>(data);
  }

  // Rows [begin, begin + count) of the first dim.
  TensorView rows(std::int64_t begin, std::int64_t count) const;
  // The same elements with other dims; the number of elements must agree.
  TensorView reshape(std::initializer_list<std::int64_t> new_dims) const;
};

// "f32[4, 128]", for error texts.
std::string describe(const TensorSpec& spec);
std::string describe(const TensorView& view);

}  // namespace memphis
