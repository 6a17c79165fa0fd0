// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <utility>

#include "csrc/core/dtype.h"
#include "csrc/core/error.h"

namespace memphis::kernels {

// Calls visitor.operator()<T>() with the C++ type of `dtype`: `visit_float(dtype, [&]<class T>() {
// … })`. The dtypes that ops compute in; f64 exists on the CPU only.
template <class Visitor>
void visit_float(DType dtype, Visitor&& visitor) {
  switch (dtype) {
    case DType::f64:
      return visitor.template operator()<double>();
    case DType::f32:
      return visitor.template operator()<float>();
    case DType::bf16:
      return visitor.template operator()<bf16>();
    default:
      throw ContractError("no op computes in " + std::string(name_of(dtype)));
  }
}

// The same for the GPU.
template <class Visitor>
void visit_gpu_float(DType dtype, Visitor&& visitor) {
  switch (dtype) {
    case DType::f32:
      return visitor.template operator()<float>();
    case DType::bf16:
      return visitor.template operator()<bf16>();
    default:
      throw ContractError("no op computes in " + std::string(name_of(dtype)) + " on a GPU");
  }
}

}  // namespace memphis::kernels
