// SPDX-License-Identifier: Apache-2.0
#include "csrc/model/tensor_products.h"

#include <utility>

#include "csrc/core/device.h"
#include "csrc/model/regions.h"

namespace memphis {

using namespace kernels;

namespace {

constexpr const char* kGather = "tensor.whole_tokens";
constexpr const char* kSum = "tensor.sum_terms";

TensorView rows_of(const TensorView& view, const Range& range) {
  return view.rows(range.begin, range.count);
}

bool overlaps(const BlockContext& context) {
  return context.dims.tensor_chunks.overlap();
}

// Of a product that reads rows where chunk lies behind chunk, and writes them in the order of tokens.
RowRuns into_order(const TokenChunk& chunk) {
  return {.count = chunk.num_runs, .read_step = chunk.rows_of_run(), .written_step = chunk.step};
}
RowRuns out_of_order(const TokenChunk& chunk) {
  return {.count = chunk.num_runs, .read_step = chunk.step, .written_step = chunk.rows_of_run()};
}

// Chunk `index` of `sums`, which is next: beside the product of the one behind it, if there is any.
void sum_next(SummedChunks& sums, std::int64_t index) {
  if (index + 1 < sums.count()) {
    sums.start_next();
  } else {
    sums.run_next();
  }
}

// What lies in whole_TD chunk behind chunk, in the order of tokens; partial_TD is written where the two
// are not the same.
TensorView in_order(const BlockContext& context) {
  const Dims& d = context.dims;
  const TensorView& whole_TD = context.shared.whole_TD;
  if (d.tensor_chunks.cuts == 1) {
    return whole_TD;
  }
  const TensorView& ordered_TD = context.shared.partial_TD;
  for (std::int64_t i = 0; i < d.num_chunks(d.tensor_chunks); ++i) {
    const TokenChunk chunk = d.chunk_of(d.tensor_chunks, i);
    for (std::int64_t run = 0; run < chunk.num_runs; ++run) {
      const TensorView from =
          whole_TD.rows(chunk.whole.begin + run * chunk.rows_of_run(), chunk.rows_of_run());
      device_copy(ordered_TD.rows(chunk.tokens.begin + run * chunk.step, chunk.rows_of_run()).data,
                  from.data,
                  from.bytes(),
                  context.stream);
    }
  }
  return ordered_TD;
}

}  // namespace

GatheredTokens::GatheredTokens(const BlockContext& context,
                               const TensorView& piece_TD,
                               const TensorView& place_TD)
    : context_(context), piece_TD_(piece_TD), place_TD_(place_TD) {
  if (overlaps(context) && context.shared.whole_TD.present()) {
    work_ = context.groups.tensor().start(
        AllGather{.y = place_TD_, .x = piece_TD_, .num_blocks = context.dims.B},
        kGather,
        context.stream);
  }
}

TensorView GatheredTokens::take() {
  if (!context_.shared.whole_TD.present()) {
    return piece_TD_;
  }
  if (work_) {
    work_->wait(context_.stream);
    work_.reset();
  } else {
    context_.groups.tensor().run(
        AllGather{.y = place_TD_, .x = piece_TD_, .num_blocks = context_.dims.B},
        kGather,
        context_.stream);
  }
  return place_TD_;
}

GatheredChunks::GatheredChunks(const BlockContext& context,
                               const TensorView& piece_TD,
                               const TensorChunks& chunks)
    : context_(context),
      whole_TD_(context.shared.whole_TD),
      chunks_(chunks),
      count_(context.dims.num_chunks(chunks)) {
  if (!whole_TD_.present()) {
    whole_TD_ = piece_TD;
    chunks_ = {};
    count_ = 1;
    num_here_ = 1;
    return;
  }
  for (std::int64_t i = 0; i < count_; ++i) {
    const TokenChunk part = chunk(i);
    const AllGather gather{.y = rows_of(whole_TD_, part.whole),
                           .x = rows_of(piece_TD, part.residual),
                           .num_blocks = part.num_sequences};
    if (i == 0) {
      // Nothing is left to do beside the first.
      context.groups.tensor().run(gather, kGather, context.stream);
      num_here_ = 1;
    } else {
      works_[static_cast<std::size_t>(i)] =
          context.groups.tensor().start(gather, kGather, context.stream);
    }
  }
}

TokenChunk GatheredChunks::chunk(std::int64_t index) const {
  return context_.dims.chunk_of(chunks_, index);
}

void GatheredChunks::wait(std::int64_t index) {
  for (; num_here_ <= index; ++num_here_) {
    std::unique_ptr<Communicator::Work>& work = works_[static_cast<std::size_t>(num_here_)];
    work->wait(context_.stream);
    work.reset();
  }
}

std::int64_t GatheredChunks::wait_for_row(std::int64_t row) {
  std::int64_t index = 0;
  while (chunk(index).whole.end() <= row) {
    ++index;
  }
  wait(index);
  return chunk(index).whole.end();
}

SummedChunks::SummedChunks(const BlockContext& context,
                           const TensorView& piece_TD,
                           const TensorChunks& chunks)
    : context_(context),
      piece_TD_(piece_TD),
      chunks_(chunks),
      count_(context.dims.num_chunks(chunks)) {}

TokenChunk SummedChunks::chunk(std::int64_t index) const {
  return context_.dims.chunk_of(chunks_, index);
}

Collective SummedChunks::next() {
  const TokenChunk part = chunk(num_begun_++);
  const TensorView& terms_TD = context_.shared.partial_TD;
  if (context_.dims.split_sequences) {
    return ReduceScatter{.y = rows_of(piece_TD_, part.residual),
                         .x = rows_of(terms_TD, part.whole),
                         .num_blocks = part.num_sequences};
  }
  return AllReduce{.y = rows_of(piece_TD_, part.residual), .x = rows_of(terms_TD, part.whole)};
}

void SummedChunks::start_next() {
  std::unique_ptr<Communicator::Work>& work = works_[static_cast<std::size_t>(num_begun_)];
  work = context_.groups.tensor().start(next(), kSum, context_.stream);
}

void SummedChunks::run_next() {
  context_.groups.tensor().run(next(), kSum, context_.stream);
}

void SummedChunks::start_before(std::int64_t row) {
  while (num_begun_ < count_ && chunk(num_begun_).whole.end() <= row) {
    start_next();
  }
}

void SummedChunks::finish() {
  for (std::unique_ptr<Communicator::Work>& work : works_) {
    if (work) {
      work->wait(context_.stream);
      work.reset();
    }
  }
}

void gathered_product(const BlockContext& context, const MatmulForward& op) {
  if (!context.shared.whole_TD.present()) {
    return matmul_forward(op, context.stream);
  }
  GatheredChunks x(context, op.x_TK, context.dims.tensor_chunks);
  for (std::int64_t i = 0; i < x.count(); ++i) {
    const TokenChunk chunk = x.chunk(i);
    x.wait(i);
    matmul_forward({.y_TN = rows_of(op.y_TN, chunk.tokens),
                    .x_TK = rows_of(x.whole_TD(), chunk.whole),
                    .weight_NK = op.weight_NK,
                    .runs = into_order(chunk)},
                   context.stream);
  }
}

void gathered_product_backward(const BlockContext& context,
                               const MatmulBackward& op,
                               GatheredTokens* x) {
  const Stream stream = context.stream;
  const TensorView& terms_TD = context.shared.partial_TD;
  MatmulBackward inputs = op;
  inputs.dweight_NK = {};
  MatmulBackward weights = op;
  weights.dx_TK = {};
  if (!terms_TD.present() || !overlaps(context)) {
    MatmulBackward both = op;
    both.dx_TK = term_of(context, op.dx_TK);
    both.x_TK = x != nullptr ? x->take() : TensorView{};
    matmul_backward(both, stream);
    sum_terms(context, op.dx_TK);
  } else if (x != nullptr) {
    inputs.dx_TK = terms_TD;
    matmul_backward(inputs, stream);
    SummedChunks sum(context, op.dx_TK, {});
    sum.start_next();
    weights.x_TK = x->take();
    matmul_backward(weights, stream);
    sum.finish();
  } else {
    SummedChunks sums(context, op.dx_TK, context.dims.tensor_chunks);
    for (std::int64_t i = 0; i < sums.count(); ++i) {
      const TokenChunk chunk = sums.chunk(i);
      inputs.dx_TK = rows_of(terms_TD, chunk.whole);
      inputs.dy_TN = rows_of(op.dy_TN, chunk.tokens);
      inputs.runs = out_of_order(chunk);
      matmul_backward(inputs, stream);
      sum_next(sums, i);
    }
    sums.finish();
  }
}

void summed_product(const BlockContext& context, const MatmulForward& op) {
  const TensorView& terms_TD = context.shared.partial_TD;
  if (!terms_TD.present()) {
    return matmul_forward(op, context.stream);
  }
  SummedChunks sums(context, op.y_TN, context.dims.tensor_chunks);
  for (std::int64_t i = 0; i < sums.count(); ++i) {
    const TokenChunk chunk = sums.chunk(i);
    matmul_forward({.y_TN = rows_of(terms_TD, chunk.whole),
                    .x_TK = rows_of(op.x_TK, chunk.tokens),
                    .weight_NK = op.weight_NK,
                    .runs = out_of_order(chunk)},
                   context.stream);
    sum_next(sums, i);
  }
  sums.finish();
}

void summed_product_backward(const BlockContext& context, const MatmulBackward& op) {
  if (!context.shared.whole_TD.present() || !overlaps(context)) {
    MatmulBackward both = op;
    both.dy_TN = whole_tokens(context, op.dy_TN);
    return matmul_backward(both, context.stream);
  }
  GatheredChunks dy(context, op.dy_TN, context.dims.tensor_chunks);
  MatmulBackward inputs = op;
  inputs.dweight_NK = {};
  for (std::int64_t i = 0; i < dy.count(); ++i) {
    const TokenChunk chunk = dy.chunk(i);
    dy.wait(i);
    inputs.dx_TK = rows_of(op.dx_TK, chunk.tokens);
    inputs.dy_TN = rows_of(dy.whole_TD(), chunk.whole);
    inputs.runs = into_order(chunk);
    matmul_backward(inputs, context.stream);
  }
  if (op.dweight_NK.present()) {
    MatmulBackward weights = op;
    weights.dx_TK = {};
    weights.dy_TN = in_order(context);
    matmul_backward(weights, context.stream);
  }
}

WeightProducts::WeightProducts(const BlockContext& context, std::span<const WeightProduct> products)
    : context_(context), products_(products) {
  gather(0);
  gather(1);
}

void WeightProducts::gather(std::size_t index) {
  if (index < products_.size()) {
    const WeightProduct& product = products_[index];
    gathered_[index % 2].emplace(
        context_,
        product.piece == WeightProduct::Piece::dy ? product.op.dy_TN : product.op.x_TK,
        index % 2 == 0 ? context_.shared.whole_TD : context_.shared.partial_TD);
  }
}

void WeightProducts::run() {
  for (std::size_t i = 0; i < products_.size(); ++i) {
    MatmulBackward op = products_[i].op;
    (products_[i].piece == WeightProduct::Piece::dy ? op.dy_TN : op.x_TK) =
        gathered_[i % 2]->take();
    matmul_backward(op, context_.stream);
    gather(i + 2);
  }
}

}  // namespace memphis
