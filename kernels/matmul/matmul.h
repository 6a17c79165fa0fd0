// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/core/tensor.h"
#include "kernels/weight_gradient.h"

namespace memphis::kernels {

// Rows of an operand of which a product takes some: `count` runs of equally many, each beginning so many
// rows behind the one before. The operand spans from the first row of the first run to the last of the
// last; what lies between runs is neither read nor written.
struct RowRuns {
  std::int64_t count = 1;
  std::int64_t read_step = 0;     // of x, or of dy
  std::int64_t written_step = 0;  // of y, or of dx
};

// y = x weight^T: y[t, n] = sum_k x[t, k] weight[n, k]. Weights are stored [out, in].
// The letters N and K are this op's own: output and input width.
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device.
// Accumulate  f32 (f64 for f64), no TF32; one rounding, at the store.
// In place    no.
// Order       deterministic. On the CPU the bits depend neither on the number of threads nor on which
//             other rows are in the product.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; Error from cuBLASLt.
// Cost        2*T*N*K FLOP; cuBLASLt on the GPU, kernels/cpu/gemm.h on the CPU (bf16 is widened to f32).
struct MatmulForward {
  TensorView y_TN;       // out  bf16 | f32 | f64
  TensorView x_TK;       // in   dtype of y
  TensorView weight_NK;  // in   dtype of y
  RowRuns runs = {};     // of x and y; by default all rows
};
void matmul_forward(const MatmulForward& op, Stream stream);

// dx [+]= dy weight;  dweight [+]= dy^T x. Either output may be absent.
//
// Accumulate  f32 (f64 for f64). dweight is added to without rounding in between.
struct MatmulBackward {
  TensorView dx_TK = {};       // out  bf16 | f32 | f64; absent: not computed
  TensorView dweight_NK = {};  // in/out  accumulation dtype; absent: not computed
  TensorView dy_TN;            // in   dtype of x
  TensorView x_TK = {};        // in   needed for dweight
  TensorView weight_NK = {};   // in   needed for dx
  bool accumulate = false;     // dx += instead of dx =
  RowRuns runs = {};           // of dy and dx; by default all rows, as dweight takes them
  WeightGradient weight_gradient = WeightGradient::add;
};
void matmul_backward(const MatmulBackward& op, Stream stream);

// Scratch that cuBLASLt may use, allocated once per process at the first product on a GPU; counted
// by the memory plan. What NVIDIA recommends for sm_90 (cuBLAS manual, cublasSetWorkspace).
constexpr std::size_t matmul_workspace_bytes(Device device) {
  return device == Device::cuda ? std::size_t{32} << 20 : 0;
}

// Among what the bits of a device's products depend on beside their operands: the library, its version
// and what it runs on, as "cuBLASLt 12.8.4 on NVIDIA H100 80GB HBM3", or "loops compiled for avx512f, fma".
std::string matmul_library(Device device);

// Takes now what the first product would take of the device, its workspace included: before other
// work is on the GPU, for which that may wait. Products are laid out for a GPU without
// `held_multiprocessors`, those on which kernels of other streams stand throughout; not for what
// Stream::held_elsewhere tells at the moment, as their bits would depend on it.
void open_matmul_library(Device device, std::int64_t held_multiprocessors = 0);

// "PRODUCT: ALGORITHM" of each that cuBLASLt was asked for since the process began, by shape. It is
// asked once for a shape, and what it answers follows from the shape, matmul_library() and the
// multiprocessors that are held.
std::vector<std::string> matmul_choices(Device device);

// matmul.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void matmul_forward(const MatmulForward& op, Stream stream);
void matmul_backward(const MatmulBackward& op, Stream stream);
std::string matmul_library();
void open_matmul_library(std::int64_t held_multiprocessors);
std::vector<std::string> matmul_choices();
}  // namespace cuda

}  // namespace memphis::kernels
