// SPDX-License-Identifier: Apache-2.0
#include "kernels/rmsnorm/rmsnorm.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/launch.h"
#include "kernels/or_null.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Elements of a thread's piece of work: some 10 us, far above the cost of handing it out.
constexpr std::int64_t kGrain = 16384;
// Columns whose sums over the runs are formed together; they stay in the L1 cache.
constexpr std::int64_t kColumns = 256;

OpCheck check(const RmsNormForward& op, Stream stream) {
  OpCheck check("rmsnorm_forward", stream);
  check.num_dims("y_TD", op.y_TD, 2);
  const DType dtype = op.y_TD.dtype;
  const std::int64_t num_tokens = op.y_TD.dim(0);
  const std::int64_t width = op.y_TD.dim(1);
  check.float_dtype("y_TD", dtype);
  check.condition(width > 0,
                  "y_TD has rows of 0 elements (they have no mean); use a D of at least 1");
  check.tensor("y_TD", op.y_TD, {num_tokens, width}, dtype);
  check.tensor("rrms_T", op.rrms_T, {num_tokens}, accumulation_dtype(dtype));
  check.tensor("x_TD", op.x_TD, {num_tokens, width}, dtype);
  check.tensor("weight_D", op.weight_D, {width}, accumulation_dtype(dtype));
  check.optional_tensor("residual_TD", op.residual_TD, {num_tokens, width}, dtype);
  if (op.next.y_TD.present()) {
    check.tensor("next.y_TD", op.next.y_TD, {num_tokens, width}, dtype);
    check.tensor("next.rrms_T", op.next.rrms_T, {num_tokens}, accumulation_dtype(dtype));
    check.tensor("next.weight_D", op.next.weight_D, {width}, accumulation_dtype(dtype));
    check.condition(op.next.y_TD.data != op.y_TD.data || num_tokens == 0,
                    "next.y_TD is y_TD (which it is made of); use another tensor");
  }
  return check;
}

OpCheck check(const RmsNormBackward& op, Stream stream) {
  OpCheck check("rmsnorm_backward", stream);
  check.num_dims("dx_TD", op.dx_TD, 2);
  check.num_dims("partial_PD", op.partial_PD, 2);
  const DType dtype = op.dx_TD.dtype;
  const DType accumulation = accumulation_dtype(dtype);
  const std::int64_t num_tokens = op.dx_TD.dim(0);
  const std::int64_t width = op.dx_TD.dim(1);
  const std::int64_t num_partials = op.partial_PD.dim(0);
  check.float_dtype("dx_TD", dtype);
  check.condition(width > 0,
                  "dx_TD has rows of 0 elements (they have no mean); use a D of at least 1");
  check.condition(num_partials > 0,
                  "partial_PD has no rows (each holds the sum of a run); use kRmsNormPartials");
  check.tensor("dx_TD", op.dx_TD, {num_tokens, width}, dtype);
  check.tensor("dweight_D", op.dweight_D, {width}, accumulation);
  check.tensor("dy_TD", op.dy_TD, {num_tokens, width}, dtype);
  check.tensor("x_TD", op.x_TD, {num_tokens, width}, dtype);
  check.tensor("weight_D", op.weight_D, {width}, accumulation);
  check.tensor("rrms_T", op.rrms_T, {num_tokens}, accumulation);
  check.tensor("partial_PD", op.partial_PD, {num_partials, width}, accumulation);
  if (op.next.x_TD.present()) {
    check.tensor("next.dweight_D", op.next.dweight_D, {width}, accumulation);
    check.tensor("next.dy_TD", op.next.dy_TD, {num_tokens, width}, dtype);
    check.tensor("next.x_TD", op.next.x_TD, {num_tokens, width}, dtype);
    check.tensor("next.weight_D", op.next.weight_D, {width}, accumulation);
    check.tensor("next.rrms_T", op.next.rrms_T, {num_tokens}, accumulation);
    check.tensor("next.partial_PD", op.next.partial_PD, {num_partials, width}, accumulation);
    check.condition(
        op.dx_TD.data != op.dy_TD.data || num_tokens == 0,
        "dx_TD is dy_TD (to which the next norm's gradient is added); use another tensor");
  }
  return check;
}

// Loops carry `omp simd`, not just `restrict`: outputs may be inputs, at the same index.

// y of a row, and its 1 / rms(x). `residual` is null or added.
template <class T, class A = Accumulator<T>>
A forward_row(T* y, const T* x, const A* weight, const T* residual, std::int64_t width, A eps) {
  A squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t d = 0; d < width; ++d) {
    const A value = static_cast<A>(x[d]);
    squares += value * value;
  }
  const A rrms = 1 / std::sqrt(squares / static_cast<A>(width) + eps);
  if (residual == nullptr) {
#pragma omp simd
    for (std::int64_t d = 0; d < width; ++d) {
      y[d] = static_cast<T>(static_cast<A>(x[d]) * rrms * weight[d]);
    }
  } else {
#pragma omp simd
    for (std::int64_t d = 0; d < width; ++d) {
      y[d] = static_cast<T>(static_cast<A>(x[d]) * rrms * weight[d] + static_cast<A>(residual[d]));
    }
  }
  return rrms;
}

template <class T>
void forward(const RmsNormForward& op) {
  using A = Accumulator<T>;
  const std::int64_t width = op.x_TD.dim(1);
  T* const y_TD = op.y_TD.as<T>();
  A* const rrms_T = op.rrms_T.as<A>();
  const T* const x_TD = op.x_TD.as<T>();
  const A* const weight = op.weight_D.as<A>();
  const T* const residual_TD = or_null<T>(op.residual_TD);
  const auto eps = static_cast<A>(op.eps);
  const bool has_next = op.next.y_TD.present();
  const std::int64_t rows = std::max<std::int64_t>(1, kGrain / width);
  parallel_ranges(op.x_TD.dim(0), rows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t row = t * width;
      rrms_T[t] = forward_row(y_TD + row,
                              x_TD + row,
                              weight,
                              residual_TD == nullptr ? nullptr : residual_TD + row,
                              width,
                              eps);
      if (has_next) {
        const T* const none = nullptr;
        op.next.rrms_T.as<A>()[t] = forward_row(op.next.y_TD.as<T>() + row,
                                                static_cast<const T*>(y_TD + row),
                                                static_cast<const A*>(op.next.weight_D.as<A>()),
                                                none,
                                                width,
                                                eps);
      }
    }
  });
}

// One row: writes dx and adds the row's dy x r to `dweight`.
template <bool kAccumulate, class T, class A = Accumulator<T>>
void backward_row(
    T* dx, A* dweight, const T* dy, const T* x, const A* weight, A rrms, std::int64_t width) {
  A dot = 0;
#pragma omp simd reduction(+ : dot)
  for (std::int64_t d = 0; d < width; ++d) {
    dot += static_cast<A>(x[d]) * (weight[d] * static_cast<A>(dy[d]));
  }
  const A pull = rrms * rrms * rrms * (dot / static_cast<A>(width));
#pragma omp simd
  for (std::int64_t d = 0; d < width; ++d) {
    const A dy_d = static_cast<A>(dy[d]);
    const A x_d = static_cast<A>(x[d]);
    const A dx_d = rrms * (weight[d] * dy_d) - x_d * pull;
    dweight[d] += dy_d * (x_d * rrms);
    dx[d] = static_cast<T>(kAccumulate ? static_cast<A>(dx[d]) + dx_d : dx_d);
  }
}

template <class T, class A = Accumulator<T>>
void backward_row(bool accumulate,
                  T* dx,
                  A* dweight,
                  const T* dy,
                  const T* x,
                  const A* weight,
                  A rrms,
                  std::int64_t width) {
  if (accumulate) {
    backward_row<true>(dx, dweight, dy, x, weight, rrms, width);
  } else {
    backward_row<false>(dx, dweight, dy, x, weight, rrms, width);
  }
}

// dweight [+]= the sum of the runs' partial sums, in their order.
template <class A>
void sum_runs(
    A* dweight, const A* partial_PD, std::int64_t num_runs, std::int64_t width, bool add) {
  parallel_ranges(width, kColumns, [&](std::int64_t begin, std::int64_t end) {
    std::array<A, kColumns> sums{};
    for (std::int64_t p = 0; p < num_runs; ++p) {
      const A* const partial = partial_PD + p * width + begin;
#pragma omp simd
      for (std::int64_t d = 0; d < end - begin; ++d) {
        sums[static_cast<std::size_t>(d)] += partial[d];
      }
    }
    for (std::int64_t d = begin; d < end; ++d) {
      const A sum = sums[static_cast<std::size_t>(d - begin)];
      dweight[d] = add ? dweight[d] + sum : sum;
    }
  });
}

template <class T>
void backward(const RmsNormBackward& op) {
  using A = Accumulator<T>;
  const std::int64_t num_tokens = op.x_TD.dim(0);
  const std::int64_t width = op.x_TD.dim(1);
  T* const dx_TD = op.dx_TD.as<T>();
  T* const dy_TD = op.dy_TD.as<T>();
  const T* const x_TD = op.x_TD.as<T>();
  const A* const weight = op.weight_D.as<A>();
  const A* const rrms_T = op.rrms_T.as<A>();
  A* const partial_PD = op.partial_PD.as<A>();
  const bool add = op.weight_gradient == WeightGradient::add;
  const NextNormBackward& next = op.next;
  const bool has_next = next.x_TD.present();

  const std::int64_t run = std::max<std::int64_t>(1, ceil_div(num_tokens, op.partial_PD.dim(0)));
  const std::int64_t num_runs = ceil_div(num_tokens, run);
  parallel_ranges(num_tokens, run, [&](std::int64_t begin, std::int64_t end) {
    A* const partial = partial_PD + begin / run * width;
    A* const next_partial = has_next ? next.partial_PD.as<A>() + begin / run * width : nullptr;
    std::fill_n(partial, width, A{0});
    if (has_next) {
      std::fill_n(next_partial, width, A{0});
    }
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t row = t * width;
      if (has_next) {
        backward_row(next.accumulate,
                     dy_TD + row,
                     next_partial,
                     static_cast<const T*>(next.dy_TD.as<T>()) + row,
                     static_cast<const T*>(next.x_TD.as<T>()) + row,
                     static_cast<const A*>(next.weight_D.as<A>()),
                     next.rrms_T.as<A>()[t],
                     width);
      }
      backward_row(op.accumulate,
                   dx_TD + row,
                   partial,
                   static_cast<const T*>(dy_TD + row),
                   x_TD + row,
                   weight,
                   rrms_T[t],
                   width);
    }
  });
  sum_runs(op.dweight_D.as<A>(), partial_PD, num_runs, width, add);
  if (has_next) {
    sum_runs(next.dweight_D.as<A>(), next.partial_PD.as<A>(), num_runs, width, add);
  }
}

}  // namespace

void rmsnorm_forward(const RmsNormForward& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::rmsnorm_forward(op, stream);
  }
  visit_float(op.y_TD.dtype, [&]<class T>() { forward<T>(op); });
}

void rmsnorm_backward(const RmsNormBackward& op, Stream stream) {
  const OpCheck call = check(op, stream);
  if (stream.device == Device::cuda) {
    return cuda::rmsnorm_backward(op, stream);
  }
  visit_float(op.dx_TD.dtype, [&]<class T>() { backward<T>(op); });
}

}  // namespace memphis::kernels
