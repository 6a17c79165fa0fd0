// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <memory>
#include <string>

#include "bench/filled_tensor.h"
#include "bench/grouped_matmul/grouped_matmul_cases.h"
#include "bench/op_benchmark.h"
#include "bench/random_operand.h"
#include "kernels/grouped_matmul/grouped_matmul.h"

namespace memphis::bench {
namespace {

struct Operands {
  std::shared_ptr<FilledTensor> x;
  std::shared_ptr<FilledTensor> weight;
  std::shared_ptr<FilledTensor> y;  // dy in backward
  std::shared_ptr<FilledTensor> dx;
  std::shared_ptr<FilledTensor> dweight;
  std::shared_ptr<FilledTensor> offsets;
};

// The outputs too are drawn: dweight is added to.
Operands make_operands(const GroupedMatmulCase& c, const Target& target) {
  const auto draw = [&](const TensorSpec& spec) { return random_operand(spec, target.device); };
  std::vector<double> offsets = {0};
  for (const std::int64_t count : c.counts) {
    offsets.push_back(offsets.back() + static_cast<double>(count));
  }
  return {.x = draw({{c.R(), c.K}, target.dtype}),
          .weight = draw({{c.E(), c.N, c.K}, target.dtype}),
          .y = draw({{c.R(), c.N}, target.dtype}),
          .dx = draw({{c.R(), c.K}, target.dtype}),
          .dweight = draw({{c.E(), c.N, c.K}, accumulation_dtype(target.dtype)}),
          .offsets = std::make_shared<FilledTensor>(
              TensorSpec({c.E() + 1}, DType::i32), target.device, offsets)};
}

void forward(const Operands& o, Stream stream) {
  kernels::grouped_matmul_forward(
      {.y_RN = *o.y, .x_RK = *o.x, .weight_ENK = *o.weight, .offsets_E1 = *o.offsets}, stream);
}
void backward_dx(const Operands& o, Stream stream) {
  kernels::grouped_matmul_backward(
      {.dx_RK = *o.dx, .dy_RN = *o.y, .weight_ENK = *o.weight, .offsets_E1 = *o.offsets}, stream);
}
void backward_dweight(const Operands& o, Stream stream) {
  kernels::grouped_matmul_backward(
      {.dweight_ENK = *o.dweight, .dy_RN = *o.y, .x_RK = *o.x, .offsets_E1 = *o.offsets}, stream);
}
void backward(const Operands& o, Stream stream) {
  kernels::grouped_matmul_backward({.dx_RK = *o.dx,
                                    .dweight_ENK = *o.dweight,
                                    .dy_RN = *o.y,
                                    .x_RK = *o.x,
                                    .weight_ENK = *o.weight,
                                    .offsets_E1 = *o.offsets},
                                   stream);
}

void add(const char* op,
         void (*call)(const Operands&, Stream),
         const GroupedMatmulCase& c,
         const Target& target,
         const OpCost& cost) {
  register_op_benchmark(
      {.op = op,
       .shape = c.name + " R=" + std::to_string(c.R()) + " E=" + std::to_string(c.E()) +
                " N=" + std::to_string(c.N) + " K=" + std::to_string(c.K),
       .device = target.device,
       .dtype = target.dtype,
       .cost = cost,
       .setup = [=]() -> std::function<void(Stream)> {
         return [call, o = make_operands(c, target)](Stream stream) { call(o, stream); };
       }});
}

const bool registered = [] {
  constexpr std::int64_t kMaxOnCpu = std::int64_t{1} << 30U;  // multiply-adds: some 10 ms a core
  for (const GroupedMatmulCase& c : grouped_matmul_cases()) {
    if (c.tested) {
      continue;
    }
    for (const Target& target : benchmark_targets(c.R() * c.N * c.K <= kMaxOnCpu)) {
      const auto bytes_of = [](std::int64_t elements, DType dtype) {
        return static_cast<double>(elements) * static_cast<double>(size_of(dtype));
      };
      const double rows = bytes_of(c.R() * (c.N + c.K), target.dtype);
      const double weight = bytes_of(c.E() * c.N * c.K, target.dtype);
      // dweight is read and written.
      const double dweight = 2 * bytes_of(c.E() * c.N * c.K, accumulation_dtype(target.dtype));
      const double flops = 2.0 * static_cast<double>(c.R() * c.N * c.K);
      add("grouped_matmul_forward", forward, c, target, {.bytes = rows + weight, .flops = flops});
      add("grouped_matmul_backward_dx",
          backward_dx,
          c,
          target,
          {.bytes = rows + weight, .flops = flops});
      add("grouped_matmul_backward_dweight",
          backward_dweight,
          c,
          target,
          {.bytes = rows + dweight, .flops = flops});
      add("grouped_matmul_backward",
          backward,
          c,
          target,
          {.bytes = rows + bytes_of(c.R() * c.K, target.dtype) + weight + dweight,
           .flops = 2 * flops});
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
