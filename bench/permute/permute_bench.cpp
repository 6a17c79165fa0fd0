// SPDX-License-Identifier: Apache-2.0
#include "bench/permute/permute_cases.h"
#include "bench/random_operand.h"
#include "kernels/permute/permute.h"

namespace memphis::bench {
namespace {

struct Operands {
  std::shared_ptr<FilledTensor> tokens;
  std::shared_ptr<FilledTensor> rows;
  std::shared_ptr<FilledTensor> experts;
  std::shared_ptr<FilledTensor> slot;
  std::shared_ptr<FilledTensor> source;
  std::shared_ptr<FilledTensor> offsets;
  std::shared_ptr<FilledTensor> chunk_counts;

  kernels::PermuteIndex index() const {
    return {.slot_TK = *slot,
            .source_R = *source,
            .offsets_E1 = *offsets,
            .experts_TK = *experts,
            .chunk_counts_PE = *chunk_counts};
  }
};

// With a real index: the moves follow it.
Operands draw(const PermuteCase& c, const Target& target) {
  const std::int64_t R = c.num_rows();
  const auto integers = [&](const TensorSpec& spec) {
    return std::make_shared<FilledTensor>(spec, target.device);
  };
  const TensorSpec choices({c.num_tokens, c.num_choices}, DType::i32);
  Operands o{.tokens = random_operand({{c.num_tokens, c.width}, target.dtype}, target.device),
             .rows = random_operand({{R, c.width}, target.dtype}, target.device),
             .experts = std::make_shared<FilledTensor>(
                 choices, target.device, random_integers(R, "experts", 0, c.num_experts)),
             .slot = integers(choices),
             .source = integers({{R}, DType::i32}),
             .offsets = integers({{c.num_experts + 1}, DType::i32}),
             .chunk_counts = integers({{kernels::kPermuteChunks, c.num_experts}, DType::i32})};
  const OwnedStream stream(target.device);
  kernels::permute_index(o.index(), stream.view());
  synchronize(stream.view());
  return o;
}

void register_case(const PermuteCase& c, const Target& target) {
  const auto index_bytes = 3.0 * static_cast<double>(c.num_rows()) * sizeof(std::int32_t);
  const auto move_bytes = static_cast<double>((c.num_tokens + c.num_rows()) * c.width) *
                          static_cast<double>(size_of(target.dtype));
  const auto add = [&](const char* op, double bytes, const auto& call) {
    register_op_benchmark({.op = op,
                           .shape = shape_of(c),
                           .device = target.device,
                           .dtype = target.dtype,
                           .cost = {.bytes = bytes},
                           .setup = [c, target, call]() -> std::function<void(Stream)> {
                             return [o = draw(c, target), call](Stream stream) { call(o, stream); };
                           }});
  };
  add("permute_index", index_bytes, [](const Operands& o, Stream stream) {
    kernels::permute_index(o.index(), stream);
  });
  add("permute", move_bytes, [](const Operands& o, Stream stream) {
    kernels::permute(
        {.x_RD = *o.rows, .x_TD = *o.tokens, .source_R = *o.source, .slot_TK = *o.slot}, stream);
  });
  add("unpermute", move_bytes, [](const Operands& o, Stream stream) {
    kernels::unpermute({.y_TD = *o.tokens, .y_RD = *o.rows, .slot_TK = *o.slot}, stream);
  });
}

const bool kRegistered = [] {
  for (const PermuteCase& c : permute_cases()) {
    if (!c.timed) {
      continue;
    }
    for (const Target& target : benchmark_targets(c.fits_cpu)) {
      register_case(c, target);
    }
  }
  return true;
}();

}  // namespace
}  // namespace memphis::bench
