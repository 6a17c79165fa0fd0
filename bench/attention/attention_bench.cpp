// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>

#include "bench/attention/attention_cases.h"
#include "bench/filled_tensor.h"
#include "bench/op_benchmark.h"
#include "kernels/attention/attention.h"

namespace memphis::bench {
namespace {

using kernels::attention_backward;
using kernels::attention_forward;
using kernels::AttentionBackward;

// The operands of both directions; forward has run once, so that backward finds its lse.
struct Operands {
  Operands(const AttentionCase& shape, Device device, DType dtype)
      : c(shape),
        out({{c.T(), c.N, c.H}, dtype}, device),
        lse({{c.B, c.N, c.S}, accumulation_dtype(dtype)}, device),
        delta({{c.B, c.N, c.S}, accumulation_dtype(dtype)}, device),
        qkv({{c.T(), c.C(), c.H}, dtype}, device, c.qkv()),
        dqkv({{c.T(), c.C(), c.H}, dtype}, device),
        dout({{c.T(), c.N, c.H}, dtype}, device, c.dout()),
        position({{c.T()}, DType::i32}, device, c.positions()),
        workspace({{workspace_bytes(device)}, DType::u8}, device) {
    const OwnedStream stream(device);
    forward(stream.view());
    synchronize(stream.view());
  }

  void forward(Stream stream) const {
    attention_forward({.out_TNH = out,
                       .lse_BNS = lse,
                       .q_TNH = c.queries(qkv),
                       .k_UGH = c.keys(qkv),
                       .v_UGH = c.values(qkv),
                       .position_T = position,
                       .score = c.score()},
                      stream);
  }
  void backward(Stream stream) const { attention_backward(backward_op(workspace), stream); }

  AttentionBackward backward_op(const TensorView& workspace_W) const {
    return {.dq_TNH = c.queries(dqkv),
            .dk_UGH = c.keys(dqkv),
            .dv_UGH = c.values(dqkv),
            .dout_TNH = dout,
            .out_TNH = out,
            .lse_BNS = lse,
            .q_TNH = c.queries(qkv),
            .k_UGH = c.keys(qkv),
            .v_UGH = c.values(qkv),
            .position_T = position,
            .delta_BNS = delta,
            .workspace_W = workspace_W,
            .score = c.score()};
  }
  std::int64_t workspace_bytes(Device device) const {
    return static_cast<std::int64_t>(
        kernels::attention_backward_workspace_bytes(backward_op({}), device));
  }

  AttentionCase c;
  FilledTensor out;
  FilledTensor lse;
  FilledTensor delta;
  FilledTensor qkv;
  FilledTensor dqkv;
  FilledTensor dout;
  FilledTensor position;
  FilledTensor workspace;
};

void register_case(const AttentionCase& c, Device device, DType dtype) {
  const std::string shape = "B=" + std::to_string(c.B) + " S=" + std::to_string(c.S) +
                            " N=" + std::to_string(c.N) + " G=" + std::to_string(c.G) +
                            " H=" + std::to_string(c.H);
  const auto element = static_cast<double>(size_of(dtype));
  const auto qkv_bytes = static_cast<double>(c.T() * c.C() * c.H) * element;
  const auto out_bytes = static_cast<double>(c.T() * c.N * c.H) * element;
  // Two products of half the square of scores; the backward pass counts five.
  const double product_flops = static_cast<double>(c.T() * c.S * c.N * c.H);
  register_op_benchmark({.op = "attention_forward",
                         .shape = shape,
                         .device = device,
                         .dtype = dtype,
                         .cost = {.bytes = qkv_bytes + out_bytes, .flops = 2 * product_flops},
                         .setup = [c, device, dtype] {
                           const auto operands = std::make_shared<Operands>(c, device, dtype);
                           return [operands](Stream stream) { operands->forward(stream); };
                         }});
  register_op_benchmark(
      {.op = "attention_backward",
       .shape = shape,
       .device = device,
       .dtype = dtype,
       .cost = {.bytes = 2 * qkv_bytes + 2 * out_bytes, .flops = 5 * product_flops},
       .setup = [c, device, dtype] {
         const auto operands = std::make_shared<Operands>(c, device, dtype);
         return [operands](Stream stream) { operands->backward(stream); };
       }});
}

const bool registered = [] {
  for (const AttentionCase& c : attention_bench_cases()) {
    register_case(c, Device::cuda, DType::bf16);
  }
  register_case(attention_bench_cases().front(), Device::cuda, DType::f32);
  register_case(attention_bench_cases().front(), Device::cpu, DType::f32);
  return true;
}();

}  // namespace
}  // namespace memphis::bench
