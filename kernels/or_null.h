// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// The elements of an optional operand; null where it is absent.
template <class T>
T* or_null(const TensorView& operand) {
  return operand.present() ? operand.as<T>() : nullptr;
}

}  // namespace memphis::kernels
