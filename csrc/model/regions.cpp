// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/regions.h"

namespace memphis {
namespace {

constexpr const char* kJoin = "tensor.join_routed";

AllGather joining(const BlockContext& context, const TensorView& residual_TD) {
  return {.y = residual_TD, .x = context.shared.routed_out_TD, .num_blocks = context.dims.B};
}

}  // namespace

TensorView whole_tokens(const BlockContext& context, const TensorView& residual_TD) {
  const TensorView& whole_TD = context.shared.whole_TD;
  if (!whole_TD.present()) {
    return residual_TD;
  }
  context.groups.tensor().run(
      AllGather{.y = whole_TD, .x = residual_TD, .num_blocks = context.dims.B},
      "tensor.whole_tokens",
      context.stream);
  return whole_TD;
}

TensorView term_of(const BlockContext& context, const TensorView& residual_TD) {
  const TensorView& partial_TD = context.shared.partial_TD;
  return partial_TD.present() ? partial_TD : residual_TD;
}

void sum_terms(const BlockContext& context, const TensorView& residual_TD) {
  const TensorView& partial_TD = context.shared.partial_TD;
  if (!partial_TD.present()) {
    return;
  }
  if (context.dims.split_sequences) {
    context.groups.tensor().run(
        ReduceScatter{.y = residual_TD, .x = partial_TD, .num_blocks = context.dims.B},
        "tensor.sum_terms",
        context.stream);
  } else {
    context.groups.tensor().run(
        AllReduce{.y = residual_TD, .x = partial_TD}, "tensor.sum_terms", context.stream);
  }
}

TensorView routed_tokens(const BlockContext& context, const TensorView& residual_TD) {
  const TensorView& routed_in_TD = context.shared.routed_in_TD;
  if (!routed_in_TD.present()) {
    return residual_TD;
  }
  copy_piece(context, routed_in_TD, residual_TD);
  return routed_in_TD;
}

TensorView routed_part_of(const BlockContext& context, const TensorView& residual_TD) {
  const TensorView& routed_out_TD = context.shared.routed_out_TD;
  return routed_out_TD.present() ? routed_out_TD : residual_TD;
}

void join_routed_parts(const BlockContext& context, const TensorView& residual_TD) {
  if (context.shared.routed_out_TD.present()) {
    context.groups.tensor().run(joining(context, residual_TD), kJoin, context.stream);
  }
}

std::unique_ptr<Communicator::Work> start_joining_routed_parts(const BlockContext& context,
                                                               const TensorView& residual_TD) {
  if (context.dims.tensor_chunks.overlap() && context.shared.routed_out_TD.present()) {
    return context.groups.tensor().start(joining(context, residual_TD), kJoin, context.stream);
  }
  join_routed_parts(context, residual_TD);
  return nullptr;
}

void copy_piece(const BlockContext& context, const TensorView& piece, const TensorView& whole) {
  const Dims& d = context.dims;
  const std::size_t row_bytes = whole.bytes() / static_cast<std::size_t>(d.T);
  const std::size_t piece_bytes = row_bytes * static_cast<std::size_t>(d.piece_S.count);
  for (std::int64_t b = 0; b < d.B; ++b) {
    const auto from = static_cast<std::size_t>(b * d.S + d.piece_S.begin) * row_bytes;
    device_copy(static_cast<char*>(piece.data) + static_cast<std::size_t>(b) * piece_bytes,
                static_cast<const char*>(whole.data) + from,
                piece_bytes,
                context.stream);
  }
}

}  // namespace memphis
