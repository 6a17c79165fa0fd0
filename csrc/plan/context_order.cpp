// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/context_order.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string>

#include "csrc/core/error.h"

namespace memphis {
namespace {

// The queries that a block of the attention kernels takes: a run of as many reads its keys once.
constexpr std::int64_t kMostTokensOfBlock = 128;

constexpr std::int64_t kExchangesOfRank = 4;

// The most tokens up to that which halves of a rank's share are whole numbers of.
std::int64_t block_tokens(std::int64_t half) {
  std::int64_t tokens = std::min(half, kMostTokensOfBlock);
  while (half % tokens != 0) {
    --tokens;
  }
  return tokens;
}

}  // namespace

ContextOrder::ContextOrder(std::int64_t sequence_length,
                           const Piece& context,
                           ContextOrderKind kind)
    : context_(context), kind_(kind), length_(sequence_length), block_(sequence_length) {
  const std::int64_t c = context.count;
  require(c == 1 || sequence_length % (2 * c) == 0,
          "a sequence of " + std::to_string(sequence_length) + " tokens is cut into 2 x " +
              std::to_string(c) + " equal pieces");
  if (c > 1) {
    block_ = block_tokens(sequence_length / (2 * c));
  }
  const auto num_blocks = static_cast<std::size_t>(length_ / block_);
  rank_of_block_.resize(num_blocks);
  pairs_of_block_.resize(num_blocks);
  heaviest_.resize(num_blocks);
  lightest_.resize(static_cast<std::size_t>(c));
  next_.resize(static_cast<std::size_t>(c));
  pairs_.resize(static_cast<std::size_t>(c));
  places_.resize(static_cast<std::size_t>(length_ / c));
  numbers_.resize(static_cast<std::size_t>(length_));
}

void ContextOrder::assign(std::span<const std::int32_t> position_S) {
  require(static_cast<std::int64_t>(position_S.size()) == length_,
          "a sequence has a position for each of its tokens");
  bool one_document = true;
  std::fill(pairs_of_block_.begin(), pairs_of_block_.end(), 0);
  for (std::size_t t = 0; t < position_S.size(); ++t) {
    one_document = one_document && position_S[t] == static_cast<std::int32_t>(t);
    pairs_of_block_[t / static_cast<std::size_t>(block_)] += position_S[t] + 1;
  }
  if (kind_ == ContextOrderKind::zigzag || (kind_ == ContextOrderKind::automatic && one_document)) {
    deal_zigzag();
  } else {
    deal_blocks();
  }

  const std::int64_t own = length_ / context_.count;
  std::fill(pairs_.begin(), pairs_.end(), 0);
  for (std::size_t rank = 0; rank < next_.size(); ++rank) {
    next_[rank] = static_cast<std::int32_t>(static_cast<std::int64_t>(rank) * own);
  }
  std::size_t num_places = 0;
  for (std::size_t block = 0; block < rank_of_block_.size(); ++block) {
    const auto rank = static_cast<std::size_t>(rank_of_block_[block]);
    pairs_[rank] += pairs_of_block_[block];
    const std::int64_t begin = static_cast<std::int64_t>(block) * block_;
    for (std::int64_t place = begin; place < begin + block_; ++place) {
      numbers_[static_cast<std::size_t>(place)] = next_[rank]++;
      if (static_cast<std::int64_t>(rank) == context_.index) {
        places_[num_places++] = static_cast<std::int32_t>(place);
      }
    }
  }
}

void ContextOrder::deal_zigzag() {
  const std::int64_t num_pieces = 2 * context_.count;
  const auto num_blocks = static_cast<std::int64_t>(rank_of_block_.size());
  for (std::int64_t block = 0; block < num_blocks; ++block) {
    const std::int64_t piece = block * num_pieces / num_blocks;
    rank_of_block_[static_cast<std::size_t>(block)] =
        static_cast<std::int32_t>(std::min(piece, num_pieces - 1 - piece) % context_.count);
  }
}

void ContextOrder::deal_blocks() {
  std::iota(heaviest_.begin(), heaviest_.end(), 0);
  std::sort(heaviest_.begin(), heaviest_.end(), [&](std::int32_t a, std::int32_t b) {
    const std::int64_t of_a = pairs_of_block_[static_cast<std::size_t>(a)];
    const std::int64_t of_b = pairs_of_block_[static_cast<std::size_t>(b)];
    return of_a != of_b ? of_a > of_b : a < b;
  });
  std::fill(pairs_.begin(), pairs_.end(), 0);
  std::iota(lightest_.begin(), lightest_.end(), 0);
  for (std::size_t i = 0; i < heaviest_.size(); ++i) {
    const std::size_t turn = i % lightest_.size();
    if (turn == 0) {
      std::sort(lightest_.begin(), lightest_.end(), [&](std::int32_t a, std::int32_t b) {
        const std::int64_t of_a = pairs_[static_cast<std::size_t>(a)];
        const std::int64_t of_b = pairs_[static_cast<std::size_t>(b)];
        return of_a != of_b ? of_a < of_b : a < b;
      });
    }
    const auto block = static_cast<std::size_t>(heaviest_[i]);
    rank_of_block_[block] = lightest_[turn];
    pairs_[static_cast<std::size_t>(lightest_[turn])] += pairs_of_block_[block];
  }
  even_out();
}

// The ranks with most and least exchange the two blocks that bring them closest, until none do; each
// exchange takes something from the most, and there are only so many to a rank.
void ContextOrder::even_out() {
  const auto blocks = static_cast<std::int32_t>(rank_of_block_.size());
  const auto weight = [&](std::int32_t block) {
    return pairs_of_block_[static_cast<std::size_t>(block)];
  };
  const auto rank_of = [&](std::int32_t block) -> std::int32_t& {
    return rank_of_block_[static_cast<std::size_t>(block)];
  };
  for (std::int64_t turn = 0; turn < kExchangesOfRank * context_.count; ++turn) {
    const auto most = std::max_element(pairs_.begin(), pairs_.end());
    const auto least = std::min_element(pairs_.begin(), pairs_.end());
    const auto from = static_cast<std::int32_t>(most - pairs_.begin());
    const auto to = static_cast<std::int32_t>(least - pairs_.begin());
    const std::int64_t gap = *most - *least;
    std::int64_t best = gap;  // that is left between the two
    std::int32_t given = 0;
    std::int32_t taken = 0;
    for (std::int32_t a = 0; a < blocks; ++a) {
      for (std::int32_t b = 0; rank_of(a) == from && b < blocks; ++b) {
        const std::int64_t left = std::abs(gap - 2 * (weight(a) - weight(b)));
        if (rank_of(b) == to && left < best) {
          best = left;
          given = a;
          taken = b;
        }
      }
    }
    if (best == gap) {
      return;
    }
    const std::int64_t moved = weight(given) - weight(taken);
    *most -= moved;
    *least += moved;
    rank_of(given) = to;
    rank_of(taken) = from;
  }
}

}  // namespace memphis
