// SPDX-License-Identifier: Apache-2.0
#include "kernels/elementwise/elementwise.h"

#include <string>
#include <string_view>

#include "csrc/core/parallel.h"
#include "kernels/check.h"
#include "kernels/cpu/math.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

// Elements of a thread's piece of work: some 10 us, far above the cost of handing it out.
constexpr std::int64_t kGrain = 32768;

// `view` has the dims of `y`, whatever they are, and `dtype`.
void check_operand(const OpCheck& check,
                   std::string_view name,
                   const TensorView& view,
                   const TensorView& y,
                   DType dtype) {
  check.condition(view.present() && view.num_dims == y.num_dims && view.dims == y.dims, [&] {
    return std::string(name) + " is " + describe(view) + " beside an output " + describe(y) +
           " (elements are matched one to one); give both the same dims";
  });
  check.tensor(name, view.reshape({view.num_elements()}), {y.num_elements()}, dtype);
}

void check_cap(const OpCheck& check, float cap) {
  check.condition(cap >= 0.0F, [&] {
    return "cap is " + std::to_string(cap) +
           " (it bounds a magnitude); use a positive one, or 0 for none";
  });
}

// Calls map(i) for i in [0, n). Maps are called under `omp simd`: outputs may be inputs, at the
// same index.
template <class Map>
void for_each(std::int64_t n, const Map& map) {
  parallel_ranges(n, kGrain, [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
      map(i);
    }
  });
}

template <class T>
void add_elements(const Add& op) {
  using A = Accumulator<T>;
  T* const y = op.y.as<T>();
  const T* const a = op.a.as<T>();
  const T* const b = op.b.as<T>();
  const A factor = static_cast<A>(op.scale);
  for_each(op.y.num_elements(), [=](std::int64_t i) {
    y[i] = static_cast<T>(factor * (static_cast<A>(a[i]) + static_cast<A>(b[i])));
  });
}

template <class T>
void scale_elements(const Scale& op) {
  using A = Accumulator<T>;
  T* const y = op.y.as<T>();
  const T* const x = op.x.as<T>();
  const A factor = static_cast<A>(op.scale);
  for_each(op.y.num_elements(),
           [=](std::int64_t i) { y[i] = static_cast<T>(factor * static_cast<A>(x[i])); });
}

template <class Out, class T>
void cap_elements(const SoftCapForward& op) {
  using A = Accumulator<T>;
  Out* const y = op.y.as<Out>();
  const T* const x = op.x.as<T>();
  const A factor = static_cast<A>(op.scale);
  const A cap = static_cast<A>(op.cap);
  if (op.cap == 0.0F) {
    for_each(op.y.num_elements(),
             [=](std::int64_t i) { y[i] = static_cast<Out>(factor * static_cast<A>(x[i])); });
  } else {
    for_each(op.y.num_elements(), [=](std::int64_t i) {
      y[i] = static_cast<Out>(cap * cpu::tanh(factor * static_cast<A>(x[i]) / cap));
    });
  }
}

template <class T>
void cap_gradients(const SoftCapBackward& op) {
  using A = Accumulator<T>;
  T* const dx = op.dx.as<T>();
  const T* const dy = op.dy.as<T>();
  const T* const y = op.y.as<T>();
  const A factor = static_cast<A>(op.scale);
  const A cap = static_cast<A>(op.cap);
  if (op.cap == 0.0F) {
    for_each(op.dx.num_elements(),
             [=](std::int64_t i) { dx[i] = static_cast<T>(factor * static_cast<A>(dy[i])); });
  } else {
    for_each(op.dx.num_elements(), [=](std::int64_t i) {
      const A ratio = static_cast<A>(y[i]) / cap;
      dx[i] = static_cast<T>(factor * static_cast<A>(dy[i]) * (1 - ratio * ratio));
    });
  }
}

template <class Out, class In>
void convert_elements(const Convert& op) {
  Out* const y = op.y.as<Out>();
  const In* const x = op.x.as<In>();
  for_each(op.y.num_elements(),
           [=](std::int64_t i) { y[i] = static_cast<Out>(static_cast<Accumulator<In>>(x[i])); });
}

}  // namespace

void add(const Add& op, Stream stream) {
  const OpCheck check("add", stream);
  check.float_dtype("y", op.y.dtype);
  check_operand(check, "y", op.y, op.y, op.y.dtype);
  check_operand(check, "a", op.a, op.y, op.y.dtype);
  check_operand(check, "b", op.b, op.y, op.y.dtype);
  if (stream.device == Device::cuda) {
    return cuda::add(op, stream);
  }
  visit_float(op.y.dtype, [&]<class T>() { add_elements<T>(op); });
}

void scale(const Scale& op, Stream stream) {
  const OpCheck check("scale", stream);
  check.float_dtype("y", op.y.dtype);
  check_operand(check, "y", op.y, op.y, op.y.dtype);
  check_operand(check, "x", op.x, op.y, op.y.dtype);
  if (stream.device == Device::cuda) {
    return cuda::scale(op, stream);
  }
  visit_float(op.y.dtype, [&]<class T>() { scale_elements<T>(op); });
}

void soft_cap_forward(const SoftCapForward& op, Stream stream) {
  const OpCheck check("soft_cap_forward", stream);
  check.float_dtype("x", op.x.dtype);
  check_operand(check, "x", op.x, op.x, op.x.dtype);
  const bool widened = op.y.dtype == accumulation_dtype(op.x.dtype);
  check_operand(check, "y", op.y, op.x, widened ? op.y.dtype : op.x.dtype);
  check_cap(check, op.cap);
  if (stream.device == Device::cuda) {
    return cuda::soft_cap_forward(op, stream);
  }
  visit_float(op.x.dtype, [&]<class T>() {
    if (widened) {
      cap_elements<Accumulator<T>, T>(op);
    } else {
      cap_elements<T, T>(op);
    }
  });
}

void soft_cap_backward(const SoftCapBackward& op, Stream stream) {
  const OpCheck check("soft_cap_backward", stream);
  check.float_dtype("dx", op.dx.dtype);
  check_operand(check, "dx", op.dx, op.dx, op.dx.dtype);
  check_operand(check, "dy", op.dy, op.dx, op.dx.dtype);
  check_operand(check, "y", op.y, op.dx, op.dx.dtype);
  check_cap(check, op.cap);
  if (stream.device == Device::cuda) {
    return cuda::soft_cap_backward(op, stream);
  }
  visit_float(op.dx.dtype, [&]<class T>() { cap_gradients<T>(op); });
}

void convert(const Convert& op, Stream stream) {
  const OpCheck check("convert", stream);
  check.float_dtype("y", op.y.dtype);
  check.float_dtype("x", op.x.dtype);
  check_operand(check, "y", op.y, op.y, op.y.dtype);
  check_operand(check, "x", op.x, op.y, op.x.dtype);
  if (stream.device == Device::cuda) {
    return cuda::convert(op, stream);
  }
  visit_float(op.y.dtype, [&]<class Out>() {
    visit_float(op.x.dtype, [&]<class In>() { convert_elements<Out, In>(op); });
  });
}

}  // namespace memphis::kernels
