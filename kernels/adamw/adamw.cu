// SPDX-License-Identifier: Apache-2.0
//
// A thread updates 16 bytes of neighbouring parameters, with 16 or 32 bytes of each f32 operand.
// Bound by bytes: some 15 operations, one division and one root for 30 bytes.
#include "kernels/adamw/adamw.h"

#include <cmath>
#include <limits>

#include <gpu_launch.h>
#include <gpu_memory.h>

#include "kernels/adamw/adamw_coefficients.h"
#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

using gpu::load_floats;
using gpu::store_floats;

// At the 56 registers of bf16, four blocks an SM: half its threads, each with eight 16-byte loads
// in flight.
constexpr std::int64_t kThreads = 256;

template <class T>
struct Operands {
  T* param;
  float* master;
  float* m;
  float* v;
  const float* grad;
  const float* norm;
  const float* rates;
};

template <int kCount, class T>
__device__ __forceinline__ void update(const Operands<T>& op,
                                       const AdamWCoefficients<float>& c,
                                       const AdamWRates<float>& r,
                                       float clip,
                                       std::int64_t first) {
  float grad[kCount];
  float m[kCount];
  float v[kCount];
  float master[kCount];
  load_floats(op.grad + first, grad);
  load_floats(op.m + first, m);
  load_floats(op.v + first, v);
  load_floats(op.master + first, master);
  for (int i = 0; i < kCount; ++i) {
    const float g = grad[i] * clip;
    m[i] = c.beta1 * m[i] + c.one_minus_beta1 * g;
    v[i] = c.beta2 * v[i] + c.one_minus_beta2 * g * g;
    const float denominator = sqrtf(v[i] * r.v_correction) + c.eps;
    const float direction = m[i] * r.m_correction / denominator + c.weight_decay * master[i];
    master[i] -= r.learning_rate * direction;
  }
  store_floats(op.m + first, m);
  store_floats(op.v + first, v);
  store_floats(op.master + first, master);
  store_floats(op.param + first, master);
}

// grid: n / (kThreads * kWidth), block: kThreads, shared: none.
template <class T, int kWidth>
__global__ void adamw_kernel(Operands<T> op, AdamWCoefficients<float> c, std::int64_t n) {
  const std::int64_t block = blockIdx.x;  // 64 bits: parameter numbers pass 2^31
  const std::int64_t first = (block * kThreads + threadIdx.x) * kWidth;
  if (!(fabsf(*op.norm) < std::numeric_limits<float>::infinity())) {
    return;
  }
  const float ratio = c.clip_norm / (*op.norm + AdamWCoefficients<float>::kNormFloor);
  const float clip = c.clip_norm > 0.0F && ratio < 1.0F ? ratio : 1.0F;
  const AdamWRates<float> r{
      .learning_rate = op.rates[0], .m_correction = op.rates[1], .v_correction = op.rates[2]};
  if (first + kWidth <= n) {
    update<kWidth>(op, c, r, clip, first);
    return;
  }
  for (std::int64_t i = first; i < n; ++i) {
    update<1>(op, c, r, clip, i);
  }
}

Launch choose_launch(std::int64_t n, int parameters_per_thread, Stream stream) {
  return {.grid = {.x = ceil_div(n, kThreads * parameters_per_thread)},
          .block = {.x = kThreads},
          .stream = stream};
}

}  // namespace

void adamw(const AdamW& op, Stream stream) {
  const std::int64_t n = op.param_n.dim(0);
  visit_gpu_float(op.param_n.dtype, [&]<class T>() {
    const Operands<T> operands{.param = op.param_n.as<T>(),
                               .master = op.master_n.as<float>(),
                               .m = op.m_n.as<float>(),
                               .v = op.v_n.as<float>(),
                               .grad = op.grad_n.as<float>(),
                               .norm = op.norm_1.as<float>(),
                               .rates = op.rates_3.as<float>()};
    constexpr int kWidth = gpu::kVectorWidth<T>;
    launch(adamw_kernel<T, kWidth>,
           choose_launch(n, kWidth, stream),
           operands,
           adamw_coefficients<float>(op),
           n);
  });
}

}  // namespace memphis::kernels::cuda
