// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "csrc/core/device.h"
#include "csrc/core/dtype.h"
#include "tests/support/tolerance.h"

namespace memphis::test {

// c [m, n] = old + a b: element (i, k) of a lies at i * a_row + k * a_step, element (k, j) of b at
// k * b_step + j * b_column. The three products of a linear layer y = x weight^T differ in this
// alone.
struct ProductWalk {
  std::int64_t m;
  std::int64_t n;
  std::int64_t k;
  std::int64_t a_row;
  std::int64_t a_step;
  std::int64_t b_column;
  std::int64_t b_step;
};

inline ProductWalk forward_walk(std::int64_t T, std::int64_t N, std::int64_t K) {
  return {.m = T, .n = N, .k = K, .a_row = K, .a_step = 1, .b_column = K, .b_step = 1};
}
inline ProductWalk dx_walk(std::int64_t T, std::int64_t N, std::int64_t K) {
  return {.m = T, .n = K, .k = N, .a_row = N, .a_step = 1, .b_column = 1, .b_step = K};
}
inline ProductWalk dweight_walk(std::int64_t T, std::int64_t N, std::int64_t K) {
  return {.m = N, .n = K, .k = T, .a_row = 1, .a_step = N, .b_column = 1, .b_step = K};
}

// Summed one by one in Sum, stored as Out. An empty `old` is zero.
template <class Sum, class Out>
std::vector<double> naive_product(const ProductWalk& walk,
                                  const double* a,
                                  const double* b,
                                  const std::vector<double>& old = {}) {
  std::vector<double> c(static_cast<std::size_t>(walk.m * walk.n));
  for (std::int64_t i = 0; i < walk.m; ++i) {
    for (std::int64_t j = 0; j < walk.n; ++j) {
      const auto at = static_cast<std::size_t>(i * walk.n + j);
      Sum sum = 0;
      for (std::int64_t k = 0; k < walk.k; ++k) {
        sum += static_cast<Sum>(a[i * walk.a_row + k * walk.a_step]) *
               static_cast<Sum>(b[j * walk.b_column + k * walk.b_step]);
      }
      const Sum total = old.empty() ? sum : static_cast<Sum>(old[at]) + sum;
      c[at] = static_cast<double>(static_cast<Out>(total));
    }
  }
  return c;
}

// The same as tensor cores sum bf16: 16 products and the sum so far at a time, exactly, and what does
// not fit in f32 is cut off. Each cut is toward zero, so that errors add up instead of cancelling: of
// 1100 steps in a row they are 2.6 times those of rounded sums.
//
// Source: Fasi, Higham, Mikaitis and Pranesh 2021, "Numerical behavior of NVIDIA tensor cores" (sums
// are cut, not rounded).
template <class Out>
std::vector<double> tensor_core_product(const ProductWalk& walk,
                                        const double* a,
                                        const double* b,
                                        const std::vector<double>& old = {}) {
  constexpr std::int64_t kStep = 16;
  std::vector<double> c(static_cast<std::size_t>(walk.m * walk.n));
  for (std::int64_t i = 0; i < walk.m; ++i) {
    for (std::int64_t j = 0; j < walk.n; ++j) {
      const auto at = static_cast<std::size_t>(i * walk.n + j);
      float sum = 0;
      for (std::int64_t first = 0; first < walk.k; first += kStep) {
        double exact = sum;
        for (std::int64_t k = first; k < std::min(first + kStep, walk.k); ++k) {
          exact += a[i * walk.a_row + k * walk.a_step] * b[j * walk.b_column + k * walk.b_step];
        }
        sum = static_cast<float>(exact);
        if (std::abs(static_cast<double>(sum)) > std::abs(exact)) {
          sum = std::nextafter(sum, 0.0F);
        }
      }
      const float total = old.empty() ? sum : static_cast<float>(old[at]) + sum;
      c[at] = static_cast<double>(static_cast<Out>(total));
    }
  }
  return c;
}

// `actual` is this product, made on `device`, of operands of type T, stored as Out, within the computed tolerance. The
// exact sums are long doubles: those of f64 must be better than f64's own.
template <class T, class Out = T>
testing::AssertionResult is_product(Device device,
                                    const ProductWalk& walk,
                                    const std::vector<double>& actual,
                                    const std::vector<double>& a,
                                    const std::vector<double>& b,
                                    const std::vector<double>& old = {}) {
  const DType dtype = dtype_of<T>();
  const Reference reference{
      .exact = naive_product<long double, double>(walk, a.data(), b.data(), old),
      .naive = draws_for(static_cast<std::size_t>(walk.m * walk.n), 1, [&](int draw) {
        const std::vector<double> moved_a = perturbed(dtype, a, draw);
        const std::vector<double> moved_b = perturbed(dtype, b, draw);
        return device == Device::cuda && dtype == DType::bf16
                   ? tensor_core_product<Out>(walk, moved_a.data(), moved_b.data(), old)
                   : naive_product<Accumulator<T>, Out>(walk, moved_a.data(), moved_b.data(), old);
      })};
  return close_to(actual, reference, dtype_of<Out>(), walk.n);
}

}  // namespace memphis::test
