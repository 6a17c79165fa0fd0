// SPDX-License-Identifier: Apache-2.0
#include "kernels/check.h"

#include <algorithm>

namespace memphis::kernels {
namespace {

constexpr std::uintptr_t kOperandAlignment = 16;  // the widest load of a thread

std::string list(std::initializer_list<std::int64_t> dims) {
  std::string text = "[";
  for (const std::int64_t dim : dims) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(dim);
  }
  return text + "]";
}

}  // namespace

void OpCheck::begin() {
  call_ = profile_->begin(op_, stream_);
  if (call_ == OpProfile::kLeftOut) {
    profile_ = nullptr;
  }
}

void OpCheck::fail(std::string_view message) const {
  throw ContractError(std::string(op_) + ": " + std::string(message));
}

void OpCheck::num_dims(std::string_view name, const TensorView& view, int num_dims) const {
  if (view.num_dims != num_dims) {
    throw ContractError(std::string(op_) + ": " + std::string(name) + " is " + describe(view) +
                        ", not " + std::to_string(num_dims) + "-dimensional");
  }
}

void OpCheck::float_dtype(std::string_view name, DType dtype) const {
  const bool on_both = dtype == DType::bf16 || dtype == DType::f32;
  const bool on_cpu = dtype == DType::f64 && stream_.device == Device::cpu;
  condition(on_both || on_cpu, [&] {
    return std::string(name) + " is " + std::string(name_of(dtype)) + " on " +
           std::string(memphis::name_of(stream_.device)) +
           " (ops compute in bf16 or f32, on the CPU also in f64)";
  });
}

void OpCheck::tensor(std::string_view name,
                     const TensorView& view,
                     std::initializer_list<std::int64_t> dims,
                     DType dtype) const {
  const bool same_dims = view.num_dims == static_cast<int>(dims.size()) &&
                         std::equal(dims.begin(), dims.end(), view.dims.begin());
  if (!same_dims || view.dtype != dtype) {
    throw ContractError(std::string(op_) + ": " + std::string(name) + " is " + describe(view) +
                        ", expected " + std::string(name_of(dtype)) + list(dims));
  }
  if (view.num_elements() == 0) {
    return;  // an empty tensor needs no memory
  }
  if (view.data == nullptr) {
    throw ContractError(std::string(op_) + ": " + std::string(name) + " " + describe(view) +
                        " has no memory");
  }
  if (view.device != stream_.device) {
    throw ContractError(std::string(op_) + ": " + std::string(name) + " is on " +
                        std::string(memphis::name_of(view.device)) + " and the stream on " +
                        std::string(memphis::name_of(stream_.device)) +
                        "; copy it there, or use a stream of its device");
  }
  if (reinterpret_cast<std::uintptr_t>(view.data) % kOperandAlignment != 0) {
    throw ContractError(std::string(op_) + ": " + std::string(name) + " is not 16-byte aligned");
  }
  if (profile_ != nullptr) {
    profile_->add_bytes(call_, static_cast<double>(view.bytes()));
  }
}

void OpCheck::optional_tensor(std::string_view name,
                              const TensorView& view,
                              std::initializer_list<std::int64_t> dims,
                              DType dtype) const {
  if (view.present()) {
    tensor(name, view, dims, dtype);
  }
}

}  // namespace memphis::kernels
