// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "csrc/comm/communicator.h"
#include "csrc/model/block.h"
#include "kernels/matmul/matmul.h"

// The products of the whole region (regions.h), with what tensor ranks gather before them and sum
// behind them. Where dims.tensor_chunks says so, an exchange travels beside a product:
//
//   the other of two  In the backward pass the sum of dx's terms is beside the product that gives
//                     dweight, and the gather of x beside the one that gives dx, and beside what comes
//                     before that.
//   chunks            A product that is alone is cut into chunks of tokens: while it has one, others are
//                     on their way to it, or from it.
//
// Elsewhere each is done before or behind the product. Where one rank holds everything a product is
// matmul_forward, or matmul_backward. The operands are those of these two, but that what the comments
// below call a piece is of the residual stream.
//
// Order       the bits are those without overlap, where matmul gives a row the same bits whatever others
//             are in its product, and a sum of ranks does so too: on the CPU.
namespace memphis {

// Whole tokens of a piece that was kept, on their way.
class GatheredTokens {
 public:
  // They come to `place_TD`, which is theirs until they have been used.
  GatheredTokens(const BlockContext& context,
                 const TensorView& piece_TD,
                 const TensorView& place_TD);
  // What follows on the stream sees them.
  TensorView take();

 private:
  const BlockContext& context_;
  TensorView piece_TD_;
  TensorView place_TD_;
  std::unique_ptr<Communicator::Work> work_;
};

// The same chunk by chunk, to context.shared.whole_TD.
class GatheredChunks {
 public:
  GatheredChunks(const BlockContext& context,
                 const TensorView& piece_TD,
                 const TensorChunks& chunks);

  std::int64_t count() const { return count_; }
  TokenChunk chunk(std::int64_t index) const;
  // What follows on the stream sees chunk `index`, and those before it.
  void wait(std::int64_t index);
  // The same of the chunk with row `row` of the whole, where chunks are of sequences; returns where its
  // rows end.
  std::int64_t wait_for_row(std::int64_t row);
  const TensorView& whole_TD() const { return whole_TD_; }

 private:
  const BlockContext& context_;
  TensorView whole_TD_;
  TensorChunks chunks_;
  std::int64_t count_;
  std::int64_t num_here_ = 0;
  std::array<std::unique_ptr<Communicator::Work>, TensorChunks::kMost> works_;
};

// Sums of terms that lie in term_of(piece), chunk by chunk, to the piece.
class SummedChunks {
 public:
  SummedChunks(const BlockContext& context, const TensorView& piece_TD, const TensorChunks& chunks);

  std::int64_t count() const { return count_; }
  TokenChunk chunk(std::int64_t index) const;
  // The terms of the next chunk are there. What follows on the stream does not see the sum yet; or it
  // does.
  void start_next();
  void run_next();
  // Those of all rows before `row` are, where chunks are of sequences.
  void start_before(std::int64_t row);
  // What follows on the stream sees the sums.
  void finish();

 private:
  Collective next();

  const BlockContext& context_;
  TensorView piece_TD_;
  TensorChunks chunks_;
  std::int64_t count_;
  std::int64_t num_begun_ = 0;
  std::array<std::unique_ptr<Communicator::Work>, TensorChunks::kMost> works_;
};

// y = x weight^T. x_TK is a piece.
void gathered_product(const BlockContext& context, const kernels::MatmulForward& op);
// Its derivative. dx_TK is a piece; x are the tokens that the product had, null without dweight.
void gathered_product_backward(const BlockContext& context,
                               const kernels::MatmulBackward& op,
                               GatheredTokens* x);

// y = x weight^T, summed over ranks. y_TN is a piece.
void summed_product(const BlockContext& context, const kernels::MatmulForward& op);
// Its derivative. dy_TN is a piece. Uses whole_TD and partial_TD of context.shared.
void summed_product_backward(const BlockContext& context, const kernels::MatmulBackward& op);

// A weight's gradient by itself, of which one operand is a piece.
struct WeightProduct {
  enum class Piece : std::uint8_t { dy, x };
  kernels::MatmulBackward op;
  Piece piece = Piece::dy;
};
// A piece is gathered beside what is done between the constructor and run(), or beside the product before
// its own. Uses whole_TD and partial_TD of context.shared.
class WeightProducts {
 public:
  // `products` outlive it.
  WeightProducts(const BlockContext& context, std::span<const WeightProduct> products);
  void run();

 private:
  void gather(std::size_t index);

  const BlockContext& context_;
  std::span<const WeightProduct> products_;
  // Two are on their way at a time, to places in turns.
  std::array<std::optional<GatheredTokens>, 2> gathered_;
};

}  // namespace memphis
