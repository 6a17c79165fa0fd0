// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// Executes the contract of one op call. Every member throws ContractError, naming op and operand.
class OpCheck {
 public:
  OpCheck(std::string_view op, Stream stream) : op_(op), stream_(stream) {}

  // Present, on the stream's device, 16-byte aligned, of exactly these dims and this dtype.
  void tensor(std::string_view name,
              const TensorView& view,
              std::initializer_list<std::int64_t> dims,
              DType dtype) const;
  // The same, or absent.
  void optional_tensor(std::string_view name,
                       const TensorView& view,
                       std::initializer_list<std::int64_t> dims,
                       DType dtype) const;
  // `dtype` is one that ops compute in on this device: bf16 or f32, and f64 on the CPU.
  void float_dtype(std::string_view name, DType dtype) const;
  // `view` has `num_dims` dims; called before its dims are read.
  void num_dims(std::string_view name, const TensorView& view, int num_dims) const;
  // Anything else: `message` says what is wrong, why, and what to do. One with values in it is a
  // function, called only where the condition fails, so that a step that goes well allocates
  // nothing.
  void condition(bool holds, std::string_view message) const {
    if (!holds) {
      fail(message);
    }
  }
  template <std::invocable Message>
  void condition(bool holds, const Message& message) const {
    if (!holds) {
      fail(message());
    }
  }

 private:
  [[noreturn]] void fail(std::string_view message) const;

  std::string_view op_;  // a literal of the caller's
  Stream stream_;
};

}  // namespace memphis::kernels
