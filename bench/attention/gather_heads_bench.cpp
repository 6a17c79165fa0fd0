// SPDX-License-Identifier: Apache-2.0
#include "bench/random_operand.h"
#include "kernels/attention/gather_heads.h"

namespace memphis::bench {
namespace {

// What ranks that share a sequence out do with the keys of a layer of Grok-1, beside tensor 4 (2 of 8
// key/value heads, 12 of 48 query heads, 128 wide): keys and values are taken out of a token, put in the
// order of the sequence, and gradients of queries of 4 ranks' keys summed.
struct HeadsCase {
  const char* what;
  std::int64_t tokens;  // of a part
  std::int64_t y_heads;
  std::int64_t x_heads;
  std::int64_t first_head;  // of x
  std::int64_t heads;
  std::int64_t parts;
  bool ordered;
};

constexpr std::int64_t kWidth = 128;
constexpr HeadsCase kCases[] = {{"taken out", 16384, 4, 16, 12, 4, 1, false},
                                {"in order", 65536, 4, 4, 0, 4, 1, true},
                                {"summed", 16384, 16, 12, 0, 12, 4, false}};

void register_case(const HeadsCase& c, const Target& target) {
  const double moved = static_cast<double>(c.tokens * c.heads * kWidth * (c.parts + 1)) *
                       static_cast<double>(size_of(target.dtype));
  register_op_benchmark(
      {.op = "gather_heads",
       .shape = std::string(c.what) + " T=" + std::to_string(c.tokens) +
                " C=" + std::to_string(c.heads) + " of " + std::to_string(c.x_heads) +
                " P=" + std::to_string(c.parts) + " H=" + std::to_string(kWidth),
       .device = target.device,
       .dtype = target.dtype,
       .cost = {.bytes = moved},
       .setup = [c, target]() -> std::function<void(Stream)> {
         const auto y =
             random_operand({{c.tokens, c.y_heads, kWidth}, target.dtype}, target.device);
         const auto x =
             random_operand({{c.parts * c.tokens, c.x_heads, kWidth}, target.dtype}, target.device);
         const auto source =
             std::make_shared<FilledTensor>(TensorSpec({c.tokens}, DType::i32),
                                            target.device,
                                            random_integers(c.tokens, "source", 0, c.tokens));
         return [=](Stream stream) {
           kernels::gather_heads({.y_TCH = kernels::HeadsView(y->view(), 0, c.heads),
                                  .x_UCH = kernels::HeadsView(x->view(), c.first_head, c.heads),
                                  .source_T = c.ordered ? source->view() : TensorView{},
                                  .num_parts = c.parts},
                                 stream);
         };
       }});
}

const bool kRegistered = [] {
  for (const HeadsCase& c : kCases) {
    for (const Target& target : benchmark_targets(/*fits_cpu=*/true)) {
      register_case(c, target);
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
