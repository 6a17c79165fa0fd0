// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/core/dtype.h"
#include "kernels/cpu/math.h"

// One row of geglu on the CPU, for the op itself and for what computes it between two products.
namespace memphis::kernels {

// y = gelu(gate) up scale.
template <class T>
void geglu_forward_row(T* y, const T* gate, const T* up, Accumulator<T> scale, std::int64_t F) {
  using Acc = Accumulator<T>;
#pragma omp simd
  for (std::int64_t f = 0; f < F; ++f) {
    const Acc value = cpu::gelu(static_cast<Acc>(gate[f])).value;
    y[f] = static_cast<T>(value * static_cast<Acc>(up[f]) * scale);
  }
}

// Returns the sum of dy gelu(gate) up. dgate and dup may be gate and up: element f is read before
// it is written, and no other is touched.
template <class T>
Accumulator<T> geglu_backward_row(T* dgate,
                                  T* dup,
                                  const T* dy,
                                  const T* gate,
                                  const T* up,
                                  Accumulator<T> scale,
                                  std::int64_t F) {
  using Acc = Accumulator<T>;
  Acc sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t f = 0; f < F; ++f) {
    const cpu::Gelu<Acc> g = cpu::gelu(static_cast<Acc>(gate[f]));
    const Acc linear = static_cast<Acc>(up[f]);
    const Acc gradient = static_cast<Acc>(dy[f]);
    sum += gradient * g.value * linear;
    dgate[f] = static_cast<T>(scale * gradient * linear * g.derivative);
    dup[f] = static_cast<T>(scale * gradient * g.value);
  }
  return sum;
}

}  // namespace memphis::kernels
