// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <functional>
#include <vector>

namespace memphis::test {

// The gradient of f at x by central differences of step `step * max(1, |x_i|)`. The error of each
// element is f''' step^2 / 6 from the cut of the series and |f| 2^-53 / step from the rounding of
// f: smallest near step = 2^-17 for an f in double, about 1e-10 of f's size.
inline std::vector<double> central_differences(
    const std::function<double(const std::vector<double>&)>& f,
    std::vector<double> x,
    double step = 0x1p-17) {
  std::vector<double> gradient(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double center = x[i];
    const double h = step * std::fmax(1.0, std::abs(center));
    const double above = center + h;
    const double below = center - h;
    x[i] = above;
    const double f_above = f(x);
    x[i] = below;
    const double f_below = f(x);
    x[i] = center;
    gradient[i] = (f_above - f_below) / (above - below);  // the steps as they were rounded
  }
  return gradient;
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
