// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/plan/range.h"

namespace memphis {

// Which tokens of a sequence each rank along `context` has. A query sees the keys of its document up
// to its own place, so that an equal share of the tokens is not an equal share of the work: blocks of
// neighbouring tokens are dealt out so that both are.
//
//   zigzag  the sequence is cut into 2 c pieces, of which rank r has piece r and piece 2c - 1 - r:
//           equal to the token where the sequence is one document. Brandon et al., arXiv:2311.09431.
//   blocks  runs of up to 128 tokens, the heaviest first, as many to each rank: each round of c blocks
//           goes to the ranks in the order of what they have least of, and then the ranks with most
//           and least exchange blocks while that helps. Any documents.
//   auto    zigzag where the sequence is one document, else blocks.
//
// A pure function of where documents begin, so that every rank knows what all others have. After
// construction nothing is allocated.
class ContextOrder {
 public:
  // ContractError unless 2 * context.count divides `sequence_length`; a count of 1 takes any.
  ContextOrder(std::int64_t sequence_length, const Piece& context, ContextOrderKind kind);

  // Deals out the sequence whose tokens have these positions within their documents.
  void assign(std::span<const std::int32_t> position_S);

  // Where the tokens of this rank lie in the sequence, ascending.
  std::span<const std::int32_t> places() const { return places_; }
  // Of each token of the sequence, its number among all ranks' tokens, rank after rank: token i of
  // rank r is number r * places().size() + i.
  std::span<const std::int32_t> numbers() const { return numbers_; }
  // Pairs of a query and a key that it sees, by the rank of the query.
  std::span<const std::int64_t> pairs() const { return pairs_; }

 private:
  void deal_zigzag();
  void deal_blocks();
  void even_out();

  Piece context_;
  ContextOrderKind kind_;
  std::int64_t length_;
  std::int64_t block_;  // tokens
  std::vector<std::int32_t> rank_of_block_;
  std::vector<std::int64_t> pairs_of_block_;
  std::vector<std::int32_t> heaviest_;  // blocks, the heaviest first
  std::vector<std::int32_t> lightest_;  // ranks, with the least first
  std::vector<std::int32_t> next_;      // by rank, the number of its next token
  std::vector<std::int32_t> places_;
  std::vector<std::int32_t> numbers_;
  std::vector<std::int64_t> pairs_;
};

}  // namespace memphis
