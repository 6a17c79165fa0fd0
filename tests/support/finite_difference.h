// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace memphis::test {

// A derivative by differences, and how far it may be from the true one.
struct Derivative {
  double value;
  double bound;
};

// The derivative of f at 0, by a central difference of step h. Its error is of two kinds, and both
// are measured. The cut of the series, f''' h^2 / 6 to begin with: a step of 2 h has four times of
// it, so that the two differ by three times what is cut off. And what rounding makes of f, by
// `noise` as a standard deviation: of the quotient noise / (sqrt(2) h), of which eleven are allowed.
// What it is compared with has a rounding of its own.
template <class F>
Derivative derivative(const F& f, double h, double noise) {
  const double near = (f(h) - f(-h)) / (2 * h);
  const double far = (f(2 * h) - f(-2 * h)) / (4 * h);
  return {.value = near, .bound = std::abs(far - near) + 8 * noise / h + ulp(DType::f64, near)};
}

// The standard deviation of what rounding makes of f around 0, where f is smooth but for it: the
// fourth differences of f over steps so short that nothing else is left in them, divided by what a
// fourth difference makes of noise, sqrt(8! / 4!^2). At least half a unit in the last place.
// Source: More and Wild 2011, "Estimating computational noise".
template <class F>
double noise_of(const F& f, double step = 0x1p-44) {
  constexpr std::size_t kNumPoints = 13;
  std::array<double, kNumPoints> values{};
  for (std::size_t i = 0; i < kNumPoints; ++i) {
    values[i] = f((static_cast<double>(i) - 6) * step);
  }
  const double least = ulp(DType::f64, values[kNumPoints / 2]) / 2;
  for (std::size_t order = 1; order <= 4; ++order) {
    for (std::size_t i = 0; i + order < kNumPoints; ++i) {
      values[i] = values[i + 1] - values[i];
    }
  }
  double squares = 0;
  for (std::size_t i = 0; i + 4 < kNumPoints; ++i) {
    squares += values[i] * values[i];
  }
  return std::max(least, std::sqrt(squares / static_cast<double>(kNumPoints - 4) / 70));
}

// Holds if `actual` is the gradient of f at x: every element within the bound of its difference.
// Of a linear f a step of any length will do, and a long one leaves no room for rounding.
inline testing::AssertionResult is_gradient(
    const std::vector<double>& actual,
    const std::function<double(const std::vector<double>&)>& f,
    std::vector<double> x,
    double step = 0x1p-16) {
  if (actual.size() != x.size()) {
    return testing::AssertionFailure()
           << "a gradient of " << actual.size() << " elements by " << x.size();
  }
  const double noise = noise_of([&](double offset) {
    std::vector<double> moved = x;
    for (std::size_t i = 0; i < x.size(); ++i) {
      moved[i] += (i % 2 == 0 ? offset : -offset) * std::max(1.0, std::abs(x[i]));
    }
    return f(moved);
  });
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double center = x[i];
    const auto along = [&](double offset) {
      x[i] = center + offset;
      return f(x);
    };
    // A power of two, so that the steps are those that are divided by.
    const double h = step * std::exp2(std::ceil(std::log2(std::max(1.0, std::abs(center)))));
    const Derivative expected = derivative(along, h, noise);
    x[i] = center;
    if (!(std::abs(actual[i] - expected.value) <= expected.bound)) {
      return testing::AssertionFailure()
             << "element " << i << " is " << actual[i] << ", the difference " << expected.value
             << ", apart " << std::abs(actual[i] - expected.value) << ", bound " << expected.bound;
    }
  }
  return testing::AssertionSuccess();
}

// sum_i a_i b_i: the scalar whose gradient by an op's input is what the op's backward makes of the
// output gradient b.
inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += a[i] * b[i];
  }
  return sum;
}

// The largest |a_i - b_i|, relative to the largest |b_i| (or to 1 if that is smaller). NaN if there
// is one in either, so that EXPECT_LT fails.
inline double max_difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) {
    return INFINITY;
  }
  double difference = 0;
  double size = 1;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double here = std::abs(a[i] - b[i]);
    if (std::isnan(here)) {
      return here;
    }
    difference = std::fmax(difference, here);
    size = std::fmax(size, std::abs(b[i]));
  }
  return difference / size;
}

}  // namespace memphis::test
