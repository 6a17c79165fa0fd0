// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/context_order.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "csrc/core/rng.h"
#include "tests/support/test_tensor.h"

namespace memphis {
namespace {

using Positions = std::vector<std::int32_t>;

Positions positions_of(const std::vector<std::int64_t>& documents) {
  Positions positions;
  for (const std::int64_t length : documents) {
    for (std::int64_t i = 0; i < length; ++i) {
      positions.push_back(static_cast<std::int32_t>(i));
    }
  }
  return positions;
}

// Of lengths `longest` / rank^exponent in an order that a seed draws, cut off at `length`.
Positions zipf(std::int64_t length, std::int64_t longest, double exponent, std::uint64_t stream) {
  const CounterRng rng(test::test_seed(), "zipf");
  std::vector<std::int64_t> documents;
  std::uint64_t next = stream << 32U;
  for (std::int64_t left = length; left > 0; left -= documents.back()) {
    const double rank = 1 + static_cast<double>(rng.word64(next++) % 1000);
    const auto tokens =
        static_cast<std::int64_t>(static_cast<double>(longest) / std::pow(rank, exponent));
    documents.push_back(std::min(left, 1 + tokens));
  }
  return positions_of(documents);
}

struct Dealt {
  std::vector<std::vector<std::int32_t>> places;  // of each rank
  std::vector<std::int64_t> pairs;
};

// As every rank sees it by itself; fails the test unless all see the same.
Dealt deal(const Positions& positions, std::int64_t context, ContextOrderKind kind) {
  Dealt dealt;
  const auto length = static_cast<std::int64_t>(positions.size());
  std::vector<std::int32_t> numbers;
  for (std::int64_t rank = 0; rank < context; ++rank) {
    ContextOrder order(length, {.index = rank, .count = context}, kind);
    order.assign(positions);
    dealt.places.emplace_back(order.places().begin(), order.places().end());
    const std::vector<std::int32_t> seen(order.numbers().begin(), order.numbers().end());
    const std::vector<std::int64_t> pairs(order.pairs().begin(), order.pairs().end());
    EXPECT_TRUE(rank == 0 || (seen == numbers && pairs == dealt.pairs)) << "rank " << rank;
    numbers = seen;
    dealt.pairs = pairs;
    for (std::size_t i = 0; i < dealt.places.back().size(); ++i) {
      const auto place = static_cast<std::size_t>(dealt.places.back()[i]);
      EXPECT_EQ(numbers[place], rank * (length / context) + static_cast<std::int64_t>(i));
    }
  }
  return dealt;
}

// Counted one by one.
std::vector<std::int64_t> count_pairs(const Dealt& dealt, const Positions& positions) {
  std::vector<std::int64_t> pairs;
  for (const auto& places : dealt.places) {
    std::int64_t sum = 0;
    for (const std::int32_t place : places) {
      for (std::int32_t key = place; key >= 0; --key) {
        sum += 1;
        if (positions[static_cast<std::size_t>(key)] == 0) {
          break;
        }
      }
    }
    pairs.push_back(sum);
  }
  return pairs;
}

double imbalance(const std::vector<std::int64_t>& pairs) {
  const auto all = std::accumulate(pairs.begin(), pairs.end(), std::int64_t{0});
  return static_cast<double>(*std::max_element(pairs.begin(), pairs.end())) *
         static_cast<double>(pairs.size()) / static_cast<double>(all);
}

TEST(ContextOrder, DealsEachTokenToOneRankInItsOrder) {
  for (const auto kind :
       {ContextOrderKind::automatic, ContextOrderKind::zigzag, ContextOrderKind::blocks}) {
    for (const std::int64_t context : {1, 2, 3, 4, 8}) {
      // Pieces of 1, of a prime, of one block and of several.
      for (const std::int64_t piece : {1, 7, 128, 131, 384}) {
        const std::int64_t length = 2 * context * piece;
        for (const Positions& positions : {positions_of({length}),
                                           zipf(length, length, 1.2, 1),
                                           positions_of({1, length - 1})}) {
          const Dealt dealt = deal(positions, context, kind);
          std::set<std::int32_t> all;
          for (const auto& places : dealt.places) {
            EXPECT_EQ(static_cast<std::int64_t>(places.size()), length / context);
            EXPECT_TRUE(std::is_sorted(places.begin(), places.end()));
            all.insert(places.begin(), places.end());
          }
          EXPECT_EQ(static_cast<std::int64_t>(all.size()), length);
          EXPECT_EQ(dealt.pairs, count_pairs(dealt, positions));
        }
      }
    }
  }
}

// 64 tokens on 4 ranks: cut into four runs the last would have 904 of 2080 pairs.
TEST(ContextOrder, AZigzagIsEqualToTheTokenOnOneDocument) {
  for (const auto kind : {ContextOrderKind::automatic, ContextOrderKind::zigzag}) {
    EXPECT_EQ(deal(positions_of({64}), 4, kind).pairs, std::vector<std::int64_t>(4, 520));
  }
  const Dealt dealt = deal(positions_of({16}), 2, ContextOrderKind::zigzag);
  EXPECT_EQ(dealt.places[0], (std::vector<std::int32_t>{0, 1, 2, 3, 12, 13, 14, 15}));
  EXPECT_EQ(dealt.places[1], (std::vector<std::int32_t>{4, 5, 6, 7, 8, 9, 10, 11}));
}

// Where documents are packed a zigzag is not, and blocks are.
TEST(ContextOrder, BlocksAreBalancedOnPackedDocuments) {
  const Positions three = positions_of({20 * 128, 27 * 128, 17 * 128});
  EXPECT_GT(imbalance(deal(three, 4, ContextOrderKind::zigzag).pairs), 1.35);
  EXPECT_LT(imbalance(deal(three, 4, ContextOrderKind::automatic).pairs), 1.1);
  for (const std::int64_t context : {2, 4, 8, 16}) {
    for (const double exponent : {0.5, 1.0, 1.5, 2.0}) {
      for (std::uint64_t draw = 0; draw < 8; ++draw) {
        const std::int64_t length = 256 * 128;
        const Positions positions = zipf(length, length / 2, exponent, draw);
        const Dealt dealt = deal(positions, context, ContextOrderKind::automatic);
        EXPECT_LE(imbalance(dealt.pairs), 1.05)
            << context << " ranks, exponent " << exponent << ", draw " << draw;
      }
    }
  }
}

// Neighbours stay together: a kernel reads the keys of a run of queries once.
TEST(ContextOrder, RunsAreOf128TokensWhereTheyDivideTheShare) {
  const Positions positions = zipf(64 * 128, 3000, 1.0, 3);
  const Dealt dealt = deal(positions, 4, ContextOrderKind::blocks);
  for (const auto& places : dealt.places) {
    for (std::size_t i = 0; i < places.size(); ++i) {
      EXPECT_EQ(places[i] % 128, static_cast<std::int32_t>(i % 128));
    }
  }
}

TEST(ContextOrder, RefusesALengthThatHasNoHalvesForAll) {
  EXPECT_THROW(ContextOrder(12, {.index = 0, .count = 4}, ContextOrderKind::automatic),
               ContractError);
  EXPECT_NO_THROW(ContextOrder(13, {.index = 0, .count = 1}, ContextOrderKind::automatic));
  ContextOrder order(16, {.index = 1, .count = 2}, ContextOrderKind::automatic);
  EXPECT_THROW(order.assign(positions_of({8})), ContractError);
}

}  // namespace
}  // namespace memphis
