// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_shape.h"
#include "kernels/attention/tile_product.h"
#include "kernels/cpu/scratch.h"

// Attention on the CPU: what its two directions share.
//
// A work item is a run of queries (forward) or all queries (backward) of one key/value head of one
// sequence, so that an item alone writes what it writes. Within it a tile of kTileQueries rows goes
// against all keys that any of its rows may see: a tile of scores has kTileQueries rows, never S.
// All products run through tile_product.h, on zero-padded copies in the accumulation type, which
// stay in the L2 cache for S * H up to about 100 thousand.
namespace memphis::kernels::cpu {

// T: the dtype of the operands, float, bf16 or double. The operands are those of the contract.
template <class T>
void attention_forward(const AttentionForward& op);
template <class T>
void attention_backward(const AttentionBackward& op);

constexpr std::int64_t kTileQueries = 32;  // causal waste of the diagonal against reuse of keys

// Heads of the tokens of one sequence.
template <class T>
struct HeadRows {
  T* first;
  std::int64_t token_stride;

  T* at(std::int64_t token) const { return first + token * token_stride; }
};

// Heads from `head` on of sequence b of B.
template <class T>
HeadRows<T> rows_of(const HeadsView& heads, std::int64_t B, std::int64_t b, std::int64_t head) {
  const std::int64_t stride = heads.token_stride();
  return {.first = heads.as<std::remove_const_t<T>>() + b * (heads.num_tokens() / B) * stride +
                   head * heads.width(),
          .token_stride = stride};
}

// The part of an operand [B * n], or null where it is absent, that is of sequence b.
template <class T>
const T* of_sequence(const TensorView& operand, std::int64_t B, std::int64_t b) {
  return operand.present() ? operand.as<T>() + b * (operand.dim(0) / B) : nullptr;
}

// One sequence of an attention call, seen by one key/value head.
template <class T>
struct HeadGroup {
  using A = Accumulator<T>;

  AttentionShape shape;
  AttentionScore score;
  std::int64_t b;
  std::int64_t g;
  HeadRows<const T> queries;  // of the group's first head
  HeadRows<const T> keys;
  HeadRows<const T> values;
  const std::int32_t* position;
  const std::int32_t* place;      // null: t
  const std::int32_t* key_place;  // null: s
  const std::uint8_t* key_valid;  // null: all are

  std::int64_t place_of(std::int64_t t) const { return place == nullptr ? t : place[t]; }
  // How many keys lie before a place: as places ascend, the first that does not.
  std::int64_t keys_before(std::int64_t at) const {
    return key_place == nullptr
               ? std::clamp<std::int64_t>(at, 0, shape.num_keys)
               : std::lower_bound(key_place, key_place + shape.num_keys, at) - key_place;
  }
  // The oldest key that query t may see, and one past the newest. Neither decreases with t:
  // positions count within documents. A document that began before all keys is cut there.
  std::int64_t first_key(std::int64_t t) const { return keys_before(place_of(t) - position[t]); }
  std::int64_t end_key(std::int64_t t) const { return keys_before(place_of(t) + 1); }

  A temperature(std::int64_t t) const {
    const auto length = static_cast<A>(score.temperature_len);
    const auto p = static_cast<A>(position[t]);
    return score.temperature_len > 0 && p > length ? std::log2(p) / std::log2(length) : A{1};
  }

  bool is_valid(std::int64_t s) const { return key_valid == nullptr || key_valid[s] != 0; }

  const T* query(std::int64_t n, std::int64_t t) const {
    return queries.at(t) + (n - first_head()) * shape.H;
  }
  std::int64_t first_head() const { return g * shape.group(); }
  // Of [B, N, S].
  std::int64_t statistic(std::int64_t n, std::int64_t t) const {
    return (b * shape.N + n) * shape.S + t;
  }
  // Of [T, N, H].
  std::int64_t output(std::int64_t n, std::int64_t t) const {
    return ((b * shape.S + t) * shape.N + n) * shape.H;
  }
};

template <class T, class Operands>
HeadGroup<T> head_group(const Operands& op, const AttentionShape& shape, std::int64_t index) {
  const std::int64_t B = shape.B;
  const std::int64_t b = index / shape.G;
  const std::int64_t g = index % shape.G;
  return {.shape = shape,
          .score = op.score,
          .b = b,
          .g = g,
          .queries = rows_of<const T>(op.q_TNH, B, b, g * shape.group()),
          .keys = rows_of<const T>(op.k_UGH, B, b, g),
          .values = rows_of<const T>(op.v_UGH, B, b, g),
          .position = of_sequence<std::int32_t>(op.position_T, B, b),
          .place = of_sequence<std::int32_t>(op.place_T, B, b),
          .key_place = of_sequence<std::int32_t>(op.key_place_U, B, b),
          .key_valid = of_sequence<std::uint8_t>(op.key_valid_U, B, b)};
}

// Queries [begin, begin + count) and the keys they go against, whole panels.
template <class A>
struct QueryTile {
  std::int64_t begin;
  std::int64_t count;
  std::int64_t rows;  // count, rounded up to whole blocks
  std::int64_t first_key;
  std::int64_t end_key;

  std::int64_t key_panels() const { return (end_key - first_key) / kPanel<A>; }
};

template <class T, class A = Accumulator<T>>
QueryTile<A> make_tile(const HeadGroup<T>& heads, std::int64_t begin, std::int64_t end) {
  const std::int64_t count = std::min(kTileQueries, end - begin);
  const std::int64_t first_key = heads.first_key(begin) / kPanel<A> * kPanel<A>;
  return {.begin = begin,
          .count = count,
          .rows = round_up(count, kBlockRows),
          .first_key = first_key,
          .end_key = std::max(first_key, round_up(heads.end_key(begin + count - 1), kPanel<A>))};
}

// What is added to the logits of a tile's row: 0 for the keys that the row's query may see, -inf
// for the tile's others. Loops over a row then take whole vectors of keys: one over the seen keys
// alone does what is left of its last vector one by one, which costs as much as all the others of a
// row of 256. Attention of a step of configs/bench_cpu.yaml, forward and backward, one Emerald
// Rapids core: 79 ms so, 67 ms in whole vectors.
template <class T, class A = Accumulator<T>>
class KeyBias {
 public:
  KeyBias(const HeadGroup<T>& heads, const QueryTile<A>& tile, A* bias)
      : heads_(heads), bias_(bias), first_(heads.first_key(tile.begin)), next_(first_) {
    std::fill(bias_ + tile.first_key, bias_ + tile.end_key, kUnseen);
  }

  // Goes on to query t, the tile's next.
  void show(std::int64_t t) {
    for (const std::int64_t end = heads_.end_key(t); next_ < end; ++next_) {
      bias_[next_] = heads_.is_valid(next_) ? A{0} : kUnseen;
    }
    for (const std::int64_t first = std::min(heads_.first_key(t), next_); first_ < first;
         ++first_) {
      bias_[first_] = kUnseen;
    }
  }

 private:
  static constexpr A kUnseen = -std::numeric_limits<A>::infinity();

  const HeadGroup<T>& heads_;
  A* bias_;
  std::int64_t first_;  // the oldest key that is seen
  std::int64_t next_;   // the key after the newest
};

// Keys of a tile, from its first to the newest that query t sees, in whole vectors.
template <class T, class A = Accumulator<T>>
std::int64_t num_keys_until(const HeadGroup<T>& heads, const QueryTile<A>& tile, std::int64_t t) {
  return round_up(std::max<std::int64_t>(0, heads.end_key(t) - tile.first_key), kPanel<A> / 2);
}

// From one row of scores to the next: one vector more than a power of two, so that the columns of a
// tile lie in different cache sets.
template <class A>
std::int64_t score_stride(std::int64_t padded_keys) {
  return padded_keys + kPanel<A> / 2;
}

}  // namespace memphis::kernels::cpu
