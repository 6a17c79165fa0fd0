// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>

#include "bench/filled_tensor.h"
#include "bench/op_benchmark.h"
#include "bench/rope/rope_cases.h"
#include "kernels/rope/rope.h"

namespace memphis::bench {
namespace {

void register_case(const RopeCase& c, Device device, DType dtype) {
  const auto element = static_cast<double>(size_of(dtype));
  register_op_benchmark(
      {.op = "rope_forward",
       .shape =
           "T=" + std::to_string(c.T) + " C=" + std::to_string(c.C) + " H=" + std::to_string(c.H),
       .device = device,
       .dtype = dtype,
       .cost = {.bytes = 2 * static_cast<double>(c.T * c.rotated * c.H) * element},
       .setup = [c, device, dtype] {
         struct Operands {
           FilledTensor x;
           FilledTensor table;
           FilledTensor position;
         };
         const auto operands = std::make_shared<Operands>(
             Operands{FilledTensor({{c.T, c.C, c.H}, dtype}, device, c.x()),
                      FilledTensor({{c.S, c.H}, accumulation_dtype(dtype)}, device),
                      FilledTensor({{c.T}, DType::i32}, device, c.positions())});
         const OwnedStream stream(device);
         kernels::rope_table({.table_SH = operands->table, .theta = c.theta}, stream.view());
         synchronize(stream.view());
         return [operands, rotated = c.rotated](Stream on) {
           kernels::rope_forward({.x_TCH = operands->x,
                                  .table_SH = operands->table,
                                  .position_T = operands->position,
                                  .num_rotated_heads = rotated},
                                 on);
         };
       }});
}

const bool registered = [] {
  for (const RopeCase& c : rope_bench_cases()) {
    register_case(c, Device::cuda, DType::bf16);
  }
  register_case(rope_bench_cases().front(), Device::cpu, DType::f32);
  return true;
}();

}  // namespace
}  // namespace memphis::bench
