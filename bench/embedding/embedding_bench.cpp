// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "bench/embedding/embedding_cases.h"
#include "bench/random_operand.h"
#include "kernels/embedding/embedding.h"

namespace memphis::bench {
namespace {

std::shared_ptr<FilledTensor> random_tokens(const EmbeddingCase& c, Device device) {
  return std::make_shared<FilledTensor>(TensorSpec({c.num_tokens}, DType::i32),
                                        device,
                                        random_integers(c.num_tokens, "tokens", 0, c.vocab_size));
}

void register_forward(const EmbeddingCase& c, const Target& target) {
  const TensorSpec rows({c.num_tokens, c.width}, target.dtype);
  register_op_benchmark(
      {.op = "embedding_forward",
       .shape = shape_of(c),
       .device = target.device,
       .dtype = target.dtype,
       .cost = {.bytes = 2.0 * static_cast<double>(rows.bytes())},
       .setup = [=]() -> std::function<void(Stream)> {
         const auto y = random_operand(rows, target.device);
         const auto weight = random_operand({{c.vocab_size, c.width}, target.dtype}, target.device);
         const auto tokens = random_tokens(c, target.device);
         return [=](Stream stream) {
           kernels::embedding_forward(
               {.y_TD = *y, .weight_VD = *weight, .tokens_T = *tokens, .multiplier = c.multiplier},
               stream);
         };
       }});
}

void register_backward(const EmbeddingCase& c, const Target& target) {
  const TensorSpec rows({c.num_tokens, c.width}, target.dtype);
  // At least: dy is read, and the rows of the distinct tokens are read and written once.
  const double touched = static_cast<double>(std::min(c.num_tokens, c.vocab_size) * c.width);
  register_op_benchmark(
      {.op = "embedding_backward",
       .shape = shape_of(c),
       .device = target.device,
       .dtype = target.dtype,
       .cost = {.bytes = static_cast<double>(rows.bytes()) + 2 * sizeof(float) * touched},
       .setup = [=]() -> std::function<void(Stream)> {
         const auto dy = random_operand(rows, target.device);
         const auto dweight = random_operand({{c.vocab_size, c.width}, DType::f32}, target.device);
         const auto tokens = random_tokens(c, target.device);
         const auto order = random_tokens(c, target.device);
         return [=](Stream stream) {
           kernels::embedding_backward({.dweight_VD = *dweight,
                                        .dy_TD = *dy,
                                        .tokens_T = *tokens,
                                        .order_T = *order,
                                        .multiplier = c.multiplier},
                                       stream);
         };
       }});
}

const bool kRegistered = [] {
  for (const EmbeddingCase& c : embedding_cases()) {
    if (!c.timed) {
      continue;
    }
    for (const Target& target : benchmark_targets(c.tested)) {
      register_forward(c, target);
      register_backward(c, target);
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
