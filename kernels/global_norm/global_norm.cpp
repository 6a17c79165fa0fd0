// SPDX-License-Identifier: Apache-2.0
#include "kernels/global_norm/global_norm.h"

#include <algorithm>
#include <cmath>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/launch.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Elements of a thread's piece of work: some microseconds, far above the cost of handing it out.
constexpr std::int64_t kGrain = 32768;

// Gradients and losses are kept in an accumulation dtype, so bf16 is none of ours.
void check_input(const OpCheck& check, const TensorView& x_n) {
  check.num_dims("x_n", x_n, 1);
  check.float_dtype("x_n", x_n.dtype);
  check.tensor("x_n", x_n, {x_n.dim(0)}, accumulation_dtype(x_n.dtype));
}

OpCheck check(const GlobalNorm& op, Stream stream) {
  OpCheck check("global_norm", stream);
  check_input(check, op.x_n);
  check.num_dims("partial_P", op.partial_P, 1);
  check.condition(op.partial_P.dim(0) > 0,
                  "partial_P is empty (each element holds the sum of a run); use "
                  "kGlobalNormPartials");
  check.tensor("partial_P", op.partial_P, {op.partial_P.dim(0)}, DType::f64);
  check.tensor("norm_1", op.norm_1, {1}, op.x_n.dtype);
  return check;
}

OpCheck check(const SumAll& op, Stream stream) {
  OpCheck check("sum_all", stream);
  check_input(check, op.x_n);
  check.tensor("total_1", op.total_1, {1}, op.x_n.dtype);
  check.optional_tensor("scale_1", op.scale_1, {1}, op.x_n.dtype);
  return check;
}

// A function of its own, so that GCC 12 vectorises it: within the lambda below it did not, and the
// 4.46 M gradients of configs/bench_cpu.yaml took 5.9 ms on an Emerald Rapids core in the place of
// 1.6 ms.
template <class T>
double sum_of_squares(const T* x, std::int64_t count) {
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t i = 0; i < count; ++i) {
    const double value = static_cast<double>(x[i]);
    squares += value * value;
  }
  return squares;
}

template <class T>
void norm(const GlobalNorm& op) {
  const std::int64_t n = op.x_n.dim(0);
  const T* const x = op.x_n.as<T>();
  double* const partial = op.partial_P.as<double>();
  const std::int64_t num_partials = op.partial_P.dim(0);
  const std::int64_t run = ceil_div(n, num_partials);
  const std::int64_t runs_of_chunk = ceil_div(kGrain, std::max<std::int64_t>(1, run));
  parallel_ranges(num_partials, runs_of_chunk, [&](std::int64_t first, std::int64_t end) {
    for (std::int64_t p = first; p < end; ++p) {
      const std::int64_t begin = std::min(p * run, n);
      partial[p] = sum_of_squares(x + begin, std::min(run, n - begin));
    }
  });
  double squares = 0;
  for (std::int64_t p = 0; p < num_partials; ++p) {
    squares += partial[p];
  }
  op.norm_1.as<T>()[0] = static_cast<T>(std::sqrt(squares));
}

// On one thread: these are the losses of a micro-batch, a few microseconds of work.
template <class T>
void sum(const SumAll& op) {
  const std::int64_t n = op.x_n.dim(0);
  const T* const x = op.x_n.as<T>();
  T* const total = op.total_1.as<T>();
  double elements = 0;
#pragma omp simd reduction(+ : elements)
  for (std::int64_t i = 0; i < n; ++i) {
    elements += static_cast<double>(x[i]);
  }
  const double before = op.accumulate ? static_cast<double>(total[0]) : 0.0;
  const double scale = op.scale_1.present() ? static_cast<double>(op.scale_1.as<T>()[0]) : 1.0;
  total[0] = static_cast<T>(before + scale * elements);
}

template <class Visitor>
void visit_accumulator(DType dtype, const Visitor& visitor) {
  if (dtype == DType::f64) {
    visitor.template operator()<double>();
  } else {
    visitor.template operator()<float>();
  }
}

}  // namespace

void global_norm(const GlobalNorm& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::global_norm(op, stream);
  }
  visit_accumulator(op.x_n.dtype, [&]<class T>() { norm<T>(op); });
}

void sum_all(const SumAll& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::sum_all(op, stream);
  }
  visit_accumulator(op.x_n.dtype, [&]<class T>() { sum<T>(op); });
}

}  // namespace memphis::kernels
