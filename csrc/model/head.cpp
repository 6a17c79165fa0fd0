// SPDX-License-Identifier: Apache-2.0
//
// The head of a model: (18) of grok.cpp, the cross entropy and their gradients, a chunk of tokens at a
// time, and of the vocabulary what this rank has.
#include <algorithm>
#include <cstdint>

#include "csrc/model/block.h"
#include "csrc/model/grok.h"
#include "csrc/model/regions.h"
#include "csrc/model/tensor_products.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/global_norm/global_norm.h"
#include "kernels/matmul/matmul.h"

namespace memphis {

using namespace kernels;

void Grok::head_product(const TensorView& final_TD,
                        std::int64_t begin,
                        std::int64_t first,
                        std::int64_t count) {
  matmul_forward({.y_TN = activations_.shared.logits_CV.rows(first, count),
                  .x_TK = final_TD.rows(begin + first, count),
                  .weight_NK = parameters_.weights().head_VD},
                 stream_);
}

void Grok::head_product(GatheredChunks& final_in, std::int64_t begin, std::int64_t count) {
  for (std::int64_t first = 0; first < count;) {
    std::int64_t end = first;
    do {
      end = std::min(final_in.wait_for_row(begin + end) - begin, count);
    } while (end < count && dims_.pad_chunk(end) != end);  // the next is to begin aligned
    head_product(final_in.whole_TD(), begin, first, end - first);
    first = end;
  }
}

TensorView Grok::logits_of_rows(const MicroBatch& batch, std::int64_t begin, std::int64_t count) {
  const SharedActivations<TensorView>& shared = activations_.shared;
  head_product(whole_tokens(block_context(batch), batch.tensors.final_in_TD), begin, 0, count);
  soft_cap_forward({.y = shared.capped_logits_CV.rows(0, count),
                    .x = shared.logits_CV.rows(0, count),
                    .scale = static_cast<float>(model_.output_multiplier),
                    .cap = static_cast<float>(model_.final_cap)},
                   stream_);
  return shared.capped_logits_CV.rows(0, count);
}

TensorView Grok::logits(const MicroBatch& batch, std::int64_t token) {
  constexpr std::int64_t kRows = 8;  // a product of eight rows starts aligned in every dtype
  const SharedActivations<TensorView>& shared = activations_.shared;
  const std::int64_t begin = token / kRows * kRows;
  const std::int64_t count = std::min({kRows, dims_.T - begin, dims_.head_chunk});
  logits_of_rows(batch, begin, count);
  TensorView row = shared.capped_logits_CV.rows(token - begin, 1);
  row = row.reshape({dims_.local_V.count});
  const TensorView& row_logits_V = shared.row_logits_V;
  if (!row_logits_V.present()) {
    return row;
  }
  // Each rank has some columns and zeros for the others: the sum is exact.
  device_zero(row_logits_V.data, row_logits_V.bytes(), stream_);
  device_copy(row_logits_V.rows(dims_.local_V.begin, dims_.local_V.count).data,
              row.data,
              row.bytes(),
              stream_);
  groups_.tensor().run(AllReduce{.y = row_logits_V, .x = row_logits_V}, "head.logits", stream_);
  return row_logits_V;
}

void Grok::join_vocabulary(const MicroBatch& batch,
                           std::int64_t begin,
                           std::int64_t count,
                           TensorView& lse_T,
                           TensorView& target_T) {
  const SharedActivations<TensorView>& shared = activations_.shared;
  // Columns in whole multiples, because operands are aligned; what lies past `count` is not read.
  const std::int64_t padded = dims_.pad_chunk(count);
  const DType dtype = shared.vocab_stats_2C.dtype;
  const std::int64_t num_ranks = shared.vocab_stats_2PC.dim(1);
  const TensorView stats_2C(shared.vocab_stats_2C.data, {2, padded}, dtype, stream_.device);
  const TensorView stats_2PC(
      shared.vocab_stats_2PC.data, {2, num_ranks, padded}, dtype, stream_.device);
  const TensorView joined_2C(shared.vocab_joined_2C.data, {2, padded}, dtype, stream_.device);
  const auto half = [&](int which) { return stats_2C.rows(which, 1).reshape({padded}); };
  const auto halves = [&](int which) {
    return stats_2PC.rows(which, 1).reshape({num_ranks, padded});
  };
  lse_T = joined_2C.rows(0, 1).reshape({padded});
  target_T = joined_2C.rows(1, 1).reshape({padded});
  cross_entropy_shard({.lse_T = half(0).rows(0, count),
                       .target_T = half(1).rows(0, count),
                       .logits_TV = shared.logits_CV.rows(0, count),
                       .targets_T = batch.tensors.targets_T.rows(begin, count),
                       .multiplier = static_cast<float>(model_.output_multiplier),
                       .cap = static_cast<float>(model_.final_cap),
                       .vocab_begin = dims_.local_V.begin},
                      stream_);
  groups_.tensor().run(
      AllGather{.y = stats_2PC, .x = stats_2C, .num_blocks = 2}, "head.cross_entropy", stream_);
  cross_entropy_join(
      {.lse_T = lse_T, .target_T = target_T, .lse_PT = halves(0), .target_PT = halves(1)}, stream_);
  lse_T = lse_T.rows(0, count);
  target_T = target_T.rows(0, count);
}

void Grok::cross_entropy_of_chunk(const MicroBatch& batch,
                                  GatheredChunks& final_in,
                                  std::int64_t begin,
                                  std::int64_t count,
                                  bool with_gradient) {
  const SharedActivations<TensorView>& shared = activations_.shared;
  const TensorView logits_CV = shared.logits_CV.rows(0, count);
  const TensorView grad_scale_1 =
      with_gradient ? step_scalar_view(shared, StepScalar::target) : TensorView{};
  head_product(final_in, begin, count);
  if (dims_.tensor_parallel) {
    TensorView lse_T;
    TensorView target_T;
    join_vocabulary(batch, begin, count, lse_T, target_T);
    cross_entropy_gradient({.loss_T = batch.tensors.loss_T.rows(begin, count),
                            .dlogits_TV = with_gradient ? logits_CV : TensorView{},
                            .logits_TV = logits_CV,
                            .targets_T = batch.tensors.targets_T.rows(begin, count),
                            .lse_T = lse_T,
                            .target_T = target_T,
                            .grad_scale_1 = grad_scale_1,
                            .multiplier = static_cast<float>(model_.output_multiplier),
                            .cap = static_cast<float>(model_.final_cap),
                            .vocab_begin = dims_.local_V.begin},
                           stream_);
    return;
  }
  cross_entropy({.loss_T = batch.tensors.loss_T.rows(begin, count),
                 .dlogits_TV = with_gradient ? logits_CV : TensorView{},
                 .logits_TV = logits_CV,
                 .targets_T = batch.tensors.targets_T.rows(begin, count),
                 .grad_scale_1 = grad_scale_1,
                 .multiplier = static_cast<float>(model_.output_multiplier),
                 .cap = static_cast<float>(model_.final_cap)},
                stream_);
}

void Grok::add_cross_entropy(const MicroBatch& batch) {
  sum_all({.total_1 = stat_view(activations_.shared, Stat::loss),
           .x_n = batch.tensors.loss_T,
           .scale_1 = step_scalar_view(activations_.shared, StepScalar::target),
           .accumulate = true},
          stream_);
}

void Grok::token_losses(const MicroBatch& batch) {
  const BlockContext context = block_context(batch);
  GatheredChunks final_in(context, batch.tensors.final_in_TD, dims_.tensor_chunks.of_sequences());
  for (std::int64_t begin = 0; begin < dims_.T; begin += dims_.head_chunk) {
    const std::int64_t count = std::min(dims_.head_chunk, dims_.T - begin);
    cross_entropy_of_chunk(batch, final_in, begin, count, false);
  }
}

void Grok::loss(const MicroBatch& batch) {
  token_losses(batch);
  add_cross_entropy(batch);
}

// (18) and the loss, a chunk of tokens at a time: the gradient takes the place of the logits and is
// used up at once, so [T, V] never exists.
void Grok::backward_of_head(const MicroBatch& batch, WeightGradient weight_gradient) {
  const ModelParameters<TensorView>& weights = parameters_.weights();
  const ModelParameters<TensorView>& gradients = parameters_.gradients();
  const BackwardScratch<TensorView>& scratch = activations_.backward;
  const BlockContext context = block_context(batch);
  const TensorChunks chunks = dims_.tensor_chunks.of_sequences();
  GatheredChunks final_in(context, batch.tensors.final_in_TD, chunks);
  SummedChunks sums(context, scratch.dbranch_in_TD, chunks);
  const bool overlap = dims_.tensor_parallel && chunks.overlap();
  for (std::int64_t begin = 0; begin < dims_.T; begin += dims_.head_chunk) {
    const std::int64_t count = std::min(dims_.head_chunk, dims_.T - begin);
    cross_entropy_of_chunk(batch, final_in, begin, count, true);
    MatmulBackward both = {.dx_TK = term_of(context, scratch.dbranch_in_TD).rows(begin, count),
                           .dweight_NK = gradients.head_VD,
                           .dy_TN = activations_.shared.logits_CV.rows(0, count),
                           .x_TK = final_in.whole_TD().rows(begin, count),
                           .weight_NK = weights.head_VD,
                           .weight_gradient = begin == 0 ? weight_gradient : WeightGradient::add};
    if (overlap) {
      MatmulBackward inputs = both;
      inputs.dweight_NK = {};
      matmul_backward(inputs, stream_);
      sums.start_before(begin + count);
      both.dx_TK = {};
    }
    matmul_backward(both, stream_);
  }
  if (overlap) {
    sums.finish();
  } else {
    sum_terms(context, scratch.dbranch_in_TD);
  }
  add_cross_entropy(batch);
}

}  // namespace memphis
