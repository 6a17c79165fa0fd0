// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "csrc/core/tensor.h"
#include "kernels/op_profile.h"

namespace memphis::kernels {

// One call of an op, from its first line to its last: executes its contract, and is what a profile
// times. Members throw ContractError, naming op and operand, but for the two of profiles.
class OpCheck {
 public:
  OpCheck(std::string_view op, Stream stream)
      : op_(op), stream_(stream), profile_(OpProfile::active()) {
    if (profile_ != nullptr) {
      begin();
    }
  }
  ~OpCheck() {
    if (profile_ != nullptr) {
      profile_->end(call_);
    }
  }
  OpCheck(OpCheck&& other) noexcept
      : op_(other.op_),
        stream_(other.stream_),
        profile_(std::exchange(other.profile_, nullptr)),
        call_(other.call_) {}
  OpCheck& operator=(OpCheck&&) = delete;
  OpCheck(const OpCheck&) = delete;
  OpCheck& operator=(const OpCheck&) = delete;

  // Of a tensor's bytes, so many that the op does not touch, for a profile.
  void untouched(double bytes) const {
    if (profile_ != nullptr) {
      profile_->add_bytes(call_, -bytes);
    }
  }
  // A product of [m, k] and [k, n] that the op makes, for a profile.
  void product(std::int64_t m, std::int64_t n, std::int64_t k) const {
    if (profile_ != nullptr) {
      profile_->add_flops(
          call_, 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k));
    }
  }

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
  void begin();

  std::string_view op_;  // a literal of the caller's
  Stream stream_;
  OpProfile* profile_;  // null where this call is in none
  std::size_t call_ = OpProfile::kLeftOut;
};

}  // namespace memphis::kernels
