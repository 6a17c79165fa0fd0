// SPDX-License-Identifier: Apache-2.0
#include <functional>
#include <memory>
#include <string>

#include "bench/filled_tensor.h"
#include "bench/matmul/matmul_cases.h"
#include "bench/op_benchmark.h"
#include "bench/random_operand.h"
#include "kernels/matmul/matmul.h"

namespace memphis::bench {
namespace {

struct Operands {
  std::shared_ptr<FilledTensor> x;
  std::shared_ptr<FilledTensor> weight;
  std::shared_ptr<FilledTensor> y;  // dy in backward
  std::shared_ptr<FilledTensor> dx;
  std::shared_ptr<FilledTensor> dweight;
};

// The outputs too are drawn: dweight is added to.
Operands make_operands(const MatmulCase& c, const Target& target) {
  const auto draw = [&](std::int64_t rows, std::int64_t columns, DType dtype) {
    return random_operand({{rows, columns}, dtype}, target.device);
  };
  return {.x = draw(c.T, c.K, target.dtype),
          .weight = draw(c.N, c.K, target.dtype),
          .y = draw(c.T, c.N, target.dtype),
          .dx = draw(c.T, c.K, target.dtype),
          .dweight = draw(c.N, c.K, accumulation_dtype(target.dtype))};
}

void forward(const Operands& o, Stream stream) {
  kernels::matmul_forward({.y_TN = *o.y, .x_TK = *o.x, .weight_NK = *o.weight}, stream);
}
void backward_dx(const Operands& o, Stream stream) {
  kernels::matmul_backward({.dx_TK = *o.dx, .dy_TN = *o.y, .weight_NK = *o.weight}, stream);
}
void backward_dweight(const Operands& o, Stream stream) {
  kernels::matmul_backward({.dweight_NK = *o.dweight, .dy_TN = *o.y, .x_TK = *o.x}, stream);
}

void add(const char* op,
         void (*call)(const Operands&, Stream),
         const MatmulCase& c,
         const Target& target,
         std::size_t bytes) {
  register_op_benchmark({.op = op,
                         .shape = c.name + " T=" + std::to_string(c.T) +
                                  " N=" + std::to_string(c.N) + " K=" + std::to_string(c.K),
                         .device = target.device,
                         .dtype = target.dtype,
                         .cost = {.bytes = static_cast<double>(bytes),
                                  .flops = 2.0 * static_cast<double>(c.T * c.N * c.K)},
                         .setup = [=]() -> std::function<void(Stream)> {
                           return [call, o = make_operands(c, target)](Stream stream) {
                             call(o, stream);
                           };
                         }});
}

const bool registered = [] {
  constexpr std::int64_t kMaxOnCpu = std::int64_t{1} << 30U;  // multiply-adds: some 10 ms a core
  for (const MatmulCase& c : matmul_cases()) {
    if (c.tested) {
      continue;
    }
    for (const Target& target : benchmark_targets(c.T * c.N * c.K <= kMaxOnCpu)) {
      const auto bytes_of = [](std::int64_t rows, std::int64_t columns, DType dtype) {
        return TensorSpec({rows, columns}, dtype).bytes();
      };
      const std::size_t x = bytes_of(c.T, c.K, target.dtype);
      const std::size_t y = bytes_of(c.T, c.N, target.dtype);
      const std::size_t weight = bytes_of(c.N, c.K, target.dtype);
      // dweight is read and written.
      const std::size_t dweight = 2 * bytes_of(c.N, c.K, accumulation_dtype(target.dtype));
      add("matmul_forward", forward, c, target, x + weight + y);
      add("matmul_backward_dx", backward_dx, c, target, x + weight + y);
      add("matmul_backward_dweight", backward_dweight, c, target, x + y + dweight);
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
