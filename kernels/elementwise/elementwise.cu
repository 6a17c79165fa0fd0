// SPDX-License-Identifier: Apache-2.0
//
// A thread maps pieces of as many elements as the wider operand has in 16 bytes, neighbours next to
// each other, so that what a warp reads or writes at once has no gaps in either operand; the last
// one takes what is left element by element. Bound by bytes: at most a tanh an element.
#include "kernels/elementwise/elementwise.h"

#include <algorithm>
#include <cmath>

#include <gpu_launch.h>
#include <gpu_memory.h>

#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

using gpu::load_floats;
using gpu::store_floats;

constexpr std::int64_t kThreads = 256;  // any multiple of 128 fills an SM at these register counts
constexpr int kPieces = 2;  // of a thread that reads one operand: two loads on their way, as of two

struct ScaledSum {
  float scale;
  __device__ float operator()(float a, float b) const { return scale * (a + b); }
};

struct Scaled {
  float scale;
  __device__ float operator()(float x) const { return scale * x; }
};

struct SoftCapped {
  float ratio;  // scale / cap
  float cap;
  __device__ float operator()(float x) const { return cap * tanhf(ratio * x); }
};

struct SoftCapGradient {
  float scale;
  float cap;
  __device__ float operator()(float dy, float y) const {
    const float ratio = y / cap;
    return scale * dy * (1.0F - ratio * ratio);
  }
};

struct Same {
  __device__ float operator()(float x) const { return x; }
};

template <int kWidth, class Map, class Out, class In>
__device__ __forceinline__ void map_elements(const Map& map, Out* y, const In* x) {
  float values[kWidth];
  load_floats(x, values);
  for (int i = 0; i < kWidth; ++i) {
    values[i] = map(values[i]);
  }
  store_floats(y, values);
}

template <int kWidth, class Map, class T>
__device__ __forceinline__ void map_pairs(const Map& map, T* y, const T* a, const T* b) {
  float a_values[kWidth];
  float b_values[kWidth];
  load_floats(a, a_values);
  load_floats(b, b_values);
  for (int i = 0; i < kWidth; ++i) {
    a_values[i] = map(a_values[i], b_values[i]);
  }
  store_floats(y, a_values);
}

// grid: n / (kThreads * kWidth * kPieces), block: kThreads, shared: none.
template <int kWidth, class Map, class Out, class In>
__global__ void unary_map_kernel(Map map, Out* y, const In* x, std::int64_t n) {
  constexpr std::int64_t kStep = kThreads * kWidth;  // from a piece of a thread to its next
  const std::int64_t block = blockIdx.x;             // 64 bits: element numbers pass 2^31
  const std::int64_t first = block * kPieces * kStep + threadIdx.x * kWidth;
  if (first + (kPieces - 1) * kStep + kWidth <= n) {
    float values[kPieces][kWidth];
    gpu::load_pieces(x + first, kStep, values);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values[p][i] = map(values[p][i]);
      }
    }
    gpu::store_pieces(y + first, kStep, values);
    return;
  }
  for (std::int64_t begin = first; begin < n; begin += kStep) {
    if (begin + kWidth <= n) {
      map_elements<kWidth>(map, y + begin, x + begin);
      continue;
    }
    for (std::int64_t i = begin; i < n; ++i) {
      map_elements<1>(map, y + i, x + i);
    }
  }
}

// grid: n / (kThreads * kWidth), block: kThreads, shared: none.
template <int kWidth, class Map, class T>
__global__ void binary_map_kernel(Map map, T* y, const T* a, const T* b, std::int64_t n) {
  const std::int64_t block = blockIdx.x;
  const std::int64_t first = (block * kThreads + threadIdx.x) * kWidth;
  if (first + kWidth <= n) {
    map_pairs<kWidth>(map, y + first, a + first, b + first);
    return;
  }
  for (std::int64_t i = first; i < n; ++i) {
    map_pairs<1>(map, y + i, a + i, b + i);
  }
}

Launch choose_launch(std::int64_t n, int elements_per_thread, Stream stream) {
  return {.grid = {.x = ceil_div(n, kThreads * elements_per_thread)},
          .block = {.x = kThreads},
          .stream = stream};
}

template <class Out, class In, class Map>
void launch_unary(const Map& map, const TensorView& y, const TensorView& x, Stream stream) {
  constexpr int kWidth = std::min(gpu::kVectorWidth<Out>, gpu::kVectorWidth<In>);
  const std::int64_t n = y.num_elements();
  launch(unary_map_kernel<kWidth, Map, Out, In>,
         choose_launch(n, kPieces * kWidth, stream),
         map,
         y.as<Out>(),
         x.as<In>(),
         n);
}

template <class T, class Map>
void launch_binary(
    const Map& map, const TensorView& y, const TensorView& a, const TensorView& b, Stream stream) {
  constexpr int kWidth = gpu::kVectorWidth<T>;
  const std::int64_t n = y.num_elements();
  launch(binary_map_kernel<kWidth, Map, T>,
         choose_launch(n, kWidth, stream),
         map,
         y.as<T>(),
         a.as<T>(),
         b.as<T>(),
         n);
}

template <class Out, class In>
void launch_soft_cap_forward(const SoftCapForward& op, Stream stream) {
  if (op.cap == 0.0F) {
    launch_unary<Out, In>(Scaled{.scale = op.scale}, op.y, op.x, stream);
  } else {
    launch_unary<Out, In>(
        SoftCapped{.ratio = op.scale / op.cap, .cap = op.cap}, op.y, op.x, stream);
  }
}

}  // namespace

void add(const Add& op, Stream stream) {
  visit_gpu_float(op.y.dtype, [&]<class T>() {
    launch_binary<T>(ScaledSum{.scale = op.scale}, op.y, op.a, op.b, stream);
  });
}

void scale(const Scale& op, Stream stream) {
  visit_gpu_float(op.y.dtype, [&]<class T>() {
    launch_unary<T, T>(Scaled{.scale = op.scale}, op.y, op.x, stream);
  });
}

void soft_cap_forward(const SoftCapForward& op, Stream stream) {
  visit_gpu_float(op.x.dtype, [&]<class T>() {
    if (op.y.dtype == DType::f32) {
      launch_soft_cap_forward<float, T>(op, stream);
    } else {
      launch_soft_cap_forward<T, T>(op, stream);
    }
  });
}

void soft_cap_backward(const SoftCapBackward& op, Stream stream) {
  visit_gpu_float(op.dx.dtype, [&]<class T>() {
    if (op.cap == 0.0F) {
      launch_unary<T, T>(Scaled{.scale = op.scale}, op.dx, op.dy, stream);
    } else {
      launch_binary<T>(
          SoftCapGradient{.scale = op.scale, .cap = op.cap}, op.dx, op.dy, op.y, stream);
    }
  });
}

void convert(const Convert& op, Stream stream) {
  visit_gpu_float(op.y.dtype, [&]<class Out>() {
    visit_gpu_float(op.x.dtype,
                    [&]<class In>() { launch_unary<Out, In>(Same{}, op.y, op.x, stream); });
  });
}

}  // namespace memphis::kernels::cuda
