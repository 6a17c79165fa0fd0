// SPDX-License-Identifier: Apache-2.0
//
// A thread updates two times four neighbouring parameters, a block's width apart: what a warp reads
// or writes at once leaves no gaps, in f32 and in bf16. Bound by bytes: some 15 operations, one
// division and one root for 30 bytes.
#include "kernels/adamw/adamw.h"

#include <cmath>
#include <limits>

#include <gpu_launch.h>
#include <gpu_memory.h>

#include "kernels/adamw/adamw_coefficients.h"
#include "kernels/visit.h"

namespace memphis::kernels::cuda {
namespace {

using gpu::load_pieces;
using gpu::store_pieces;

// At 53 registers, four blocks an SM: half its threads, each with eight 16-byte loads in flight.
constexpr int kThreads = 256;
constexpr int kQuad = 4;
constexpr int kQuads = 2;  // of a thread
constexpr std::int64_t kStride = kThreads * kQuad;

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

// kPieces pieces of kCount neighbours, kStride apart.
template <int kPieces, int kCount, class T>
__device__ __forceinline__ void update(const Operands<T>& op,
                                       const AdamWCoefficients<float>& c,
                                       const AdamWRates<float>& r,
                                       float clip,
                                       std::int64_t first) {
  float grad[kPieces][kCount];
  float m[kPieces][kCount];
  float v[kPieces][kCount];
  float master[kPieces][kCount];
  load_pieces(op.grad + first, kStride, grad);
  load_pieces(op.m + first, kStride, m);
  load_pieces(op.v + first, kStride, v);
  load_pieces(op.master + first, kStride, master);
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float g = grad[p][i] * clip;
      m[p][i] = c.beta1 * m[p][i] + c.one_minus_beta1 * g;
      v[p][i] = c.beta2 * v[p][i] + c.one_minus_beta2 * g * g;
      const float denominator = sqrtf(v[p][i] * r.v_correction) + c.eps;
      const float direction =
          m[p][i] * r.m_correction / denominator + c.weight_decay * master[p][i];
      master[p][i] -= r.learning_rate * direction;
    }
  }
  store_pieces(op.m + first, kStride, m);
  store_pieces(op.v + first, kStride, v);
  store_pieces(op.master + first, kStride, master);
  store_pieces(op.param + first, kStride, master);
}

// grid: n / (kStride * kQuads), block: kThreads, shared: none.
template <class T>
__global__ void adamw_kernel(Operands<T> op, AdamWCoefficients<float> c, std::int64_t n) {
  const std::int64_t block = blockIdx.x;  // 64 bits: parameter numbers pass 2^31
  const std::int64_t first = block * kStride * kQuads + static_cast<int>(threadIdx.x) * kQuad;
  if (!(fabsf(*op.norm) < std::numeric_limits<float>::infinity())) {
    return;
  }
  const float ratio = c.clip_norm / (*op.norm + AdamWCoefficients<float>::kNormFloor);
  const float clip = c.clip_norm > 0.0F && ratio < 1.0F ? ratio : 1.0F;
  const AdamWRates<float> r{
      .learning_rate = op.rates[0], .m_correction = op.rates[1], .v_correction = op.rates[2]};
  if (first + (kQuads - 1) * kStride + kQuad <= n) {
    update<kQuads, kQuad>(op, c, r, clip, first);
    return;
  }
  for (int q = 0; q < kQuads; ++q) {
    const std::int64_t quad = first + q * kStride;
    for (std::int64_t i = quad; i < quad + kQuad && i < n; ++i) {
      update<1, 1>(op, c, r, clip, i);
    }
  }
}

Launch choose_launch(std::int64_t n, Stream stream) {
  return {.grid = {.x = ceil_div(n, kStride * kQuads)}, .block = {.x = kThreads}, .stream = stream};
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
    launch(adamw_kernel<T>, choose_launch(n, stream), operands, adamw_coefficients<float>(op), n);
  });
}

}  // namespace memphis::kernels::cuda
