// SPDX-License-Identifier: Apache-2.0
//
// A work item is a run of queries (forward) or all queries (backward) of one key/value head of one
// sequence, so that an item alone writes what it writes. Within it a tile of kTileQueries rows goes
// against all keys that any of its rows may see: a tile of scores has kTileQueries rows, never S.
// All products run through tile_product.h, on zero-padded copies in the accumulation type, which
// stay in the L2 cache for S * H up to about 100 thousand.
#include "kernels/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>

#include "csrc/core/parallel.h"
#include "kernels/attention/attention_shape.h"
#include "kernels/attention/heads_check.h"
#include "kernels/attention/tile_product.h"
#include "kernels/check.h"
#include "kernels/cpu/ahead.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/scratch.h"
#include "kernels/visit.h"

namespace memphis::kernels {
namespace {

constexpr std::int64_t kTileQueries = 32;   // causal waste of the diagonal against reuse of keys
constexpr std::int64_t kItemQueries = 256;  // of a forward work item; a multiple of the tile

using cpu::ask_for_rows;
using cpu::kBlockRows;
using cpu::kPanel;
using cpu::multiply;
using cpu::pack_rows;
using cpu::pack_transposed;
using cpu::round_up;
using cpu::Scratch;
using cpu::scratch_bytes;
using cpu::ThreadScratch;
using cpu::TileProduct;

// Heads of the tokens of one sequence.
template <class T>
struct Rows {
  T* first;
  std::int64_t token_stride;

  T* at(std::int64_t token) const { return first + token * token_stride; }
};

// Heads from `head` on of sequence b of B.
template <class T>
Rows<T> rows_of(const HeadsView& heads, std::int64_t B, std::int64_t b, std::int64_t head) {
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
  Rows<const T> queries;  // of the group's first head
  Rows<const T> keys;
  Rows<const T> values;
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
struct Tile {
  std::int64_t begin;
  std::int64_t count;
  std::int64_t rows;  // count, rounded up to whole blocks
  std::int64_t first_key;
  std::int64_t end_key;

  std::int64_t key_panels() const { return (end_key - first_key) / kPanel<A>; }
};

template <class T, class A = Accumulator<T>>
Tile<A> make_tile(const HeadGroup<T>& heads, std::int64_t begin, std::int64_t end) {
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
  KeyBias(const HeadGroup<T>& heads, const Tile<A>& tile, A* bias)
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
std::int64_t num_keys_until(const HeadGroup<T>& heads, const Tile<A>& tile, std::int64_t t) {
  return round_up(std::max<std::int64_t>(0, heads.end_key(t) - tile.first_key), kPanel<A> / 2);
}

// Logits from q.k, in place; returns their maximum.
template <class A>
A apply_score(
    A* row, const A* bias, std::int64_t num_keys, const AttentionScore& score, A temperature) {
  A maximum = -std::numeric_limits<A>::infinity();
  if (score.cap > 0) {
    const A inner = static_cast<A>(score.scale) / static_cast<A>(score.cap);
    const A outer = static_cast<A>(score.cap) * temperature;
#pragma omp simd reduction(max : maximum)
    for (std::int64_t s = 0; s < num_keys; ++s) {
      const A logit = outer * cpu::tanh(inner * row[s]) + bias[s];
      row[s] = logit;
      maximum = maximum < logit ? logit : maximum;
    }
  } else {
    const A factor = static_cast<A>(score.scale) * temperature;
#pragma omp simd reduction(max : maximum)
    for (std::int64_t s = 0; s < num_keys; ++s) {
      const A logit = factor * row[s] + bias[s];
      row[s] = logit;
      maximum = maximum < logit ? logit : maximum;
    }
  }
  return maximum;
}

template <class A>
struct Softmax {
  A lse;
  A sum;
};

// exp(logit - maximum) from q.k, in place.
template <class A>
Softmax<A> softmax_row(
    A* row, const A* bias, std::int64_t num_keys, const AttentionScore& score, A temperature) {
  const A maximum = apply_score(row, bias, num_keys, score, temperature);
  if (maximum == -std::numeric_limits<A>::infinity()) {
    std::fill_n(row, num_keys, A{0});
    return {.lse = maximum, .sum = 0};
  }
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t s = 0; s < num_keys; ++s) {
    row[s] = cpu::exp(row[s] - maximum);
    sum += row[s];
  }
  return {.lse = maximum + std::log(sum), .sum = sum};
}

template <class T>
void store_mean_value(const HeadGroup<T>& heads, T* out) {
  using A = Accumulator<T>;
  for (std::int64_t h = 0; h < heads.shape.H; ++h) {
    A sum = 0;
    for (std::int64_t s = 0; s < heads.shape.num_keys; ++s) {
      sum += static_cast<A>(heads.values.at(s)[h]);
    }
    // Without keys there is no mean either: 0.
    const std::int64_t count = std::max<std::int64_t>(1, heads.shape.num_keys);
    out[h] = static_cast<T>(sum / static_cast<A>(count));
  }
}

// From one row of scores to the next: one vector more than a power of two, so that the columns of a
// tile lie in different cache sets.
template <class A>
std::int64_t score_stride(std::int64_t padded_keys) {
  return padded_keys + kPanel<A> / 2;
}

// Of forward_item(), for all keys of the sequence.
template <class A>
std::int64_t forward_scratch_bytes(const AttentionShape& shape) {
  const std::int64_t padded_width = round_up(shape.H, kPanel<A>);
  const std::int64_t padded_keys = round_up(shape.num_keys, kPanel<A>);
  return scratch_bytes<A>(padded_keys * shape.H) + scratch_bytes<A>(padded_keys * padded_width) +
         2 * scratch_bytes<A>(kTileQueries * padded_width) +
         scratch_bytes<A>(kTileQueries * score_stride<A>(padded_keys)) +
         scratch_bytes<A>(padded_keys);
}

// Queries [begin, end) of every head of the group.
template <class T, class A = Accumulator<T>>
void forward_item(const HeadGroup<T>& heads,
                  Scratch scratch,
                  T* out,
                  A* lse,
                  std::int64_t begin,
                  std::int64_t end) {
  const std::int64_t width = heads.shape.H;
  const std::int64_t padded_width = round_up(width, kPanel<A>);
  const std::int64_t oldest = heads.first_key(begin) / kPanel<A> * kPanel<A>;
  const std::int64_t end_key = std::max(oldest, heads.end_key(end - 1));
  const std::int64_t padded_keys = round_up(end_key, kPanel<A>);
  const std::int64_t score_row = score_stride<A>(padded_keys);
  const std::int64_t tile_elements = kTileQueries * padded_width;

  A* key = scratch.take<A>(padded_keys * width);
  A* value = scratch.take<A>(padded_keys * padded_width);
  A* query = scratch.take<A>(tile_elements);
  A* result = scratch.take<A>(tile_elements);
  A* probability = scratch.take<A>(kTileQueries * score_row);
  A* bias = scratch.take<A>(padded_keys);

  pack_transposed(key + oldest * width,
                  heads.keys.at(oldest),
                  heads.keys.token_stride,
                  end_key - oldest,
                  width);
  pack_rows(value + oldest * padded_width,
            padded_keys - oldest,
            padded_width,
            heads.values.at(oldest),
            heads.values.token_stride,
            end_key - oldest,
            width);

  for (std::int64_t n = heads.first_head(); n < heads.first_head() + heads.shape.group(); ++n) {
    for (std::int64_t first = begin; first < end; first += kTileQueries) {
      const Tile<A> tile = make_tile(heads, first, end);
      pack_rows(query,
                tile.rows,
                padded_width,
                heads.query(n, first),
                heads.queries.token_stride,
                tile.count,
                width);
      multiply<A>({.c = probability + tile.first_key,
                   .c_row = score_row,
                   .a = query,
                   .a_row = padded_width,
                   .a_column = 1,
                   .b = key + tile.first_key * width,
                   .b_row = kPanel<A>,
                   .b_panel = kPanel<A> * width,
                   .rows = tile.rows,
                   .panels = tile.key_panels(),
                   .depth = width});
      A inverse_sum[kTileQueries];
      KeyBias<T> key_bias(heads, tile, bias);
      for (std::int64_t row = 0; row < tile.count; ++row) {
        const std::int64_t t = first + row;
        const std::int64_t num_keys = num_keys_until(heads, tile, t);
        A* const p = probability + row * score_row + tile.first_key;
        key_bias.show(t);
        const Softmax<A> softmax =
            softmax_row(p, bias + tile.first_key, num_keys, heads.score, heads.temperature(t));
        std::fill(p + num_keys, p + (tile.end_key - tile.first_key), A{0});
        lse[heads.statistic(n, t)] = softmax.lse;
        inverse_sum[row] = softmax.sum > 0 ? A{1} / softmax.sum : A{0};
      }
      multiply<A>({.c = result,
                   .c_row = padded_width,
                   .a = probability + tile.first_key,
                   .a_row = score_row,
                   .a_column = 1,
                   .b = value + tile.first_key * padded_width,
                   .b_row = padded_width,
                   .b_panel = kPanel<A>,
                   .rows = tile.rows,
                   .panels = padded_width / kPanel<A>,
                   .depth = tile.end_key - tile.first_key});
      for (std::int64_t row = 0; row < tile.count; ++row) {
        T* to = out + heads.output(n, first + row);
        if (inverse_sum[row] == 0) {
          store_mean_value(heads, to);
          continue;
        }
        for (std::int64_t h = 0; h < width; ++h) {
          to[h] = static_cast<T>(result[row * padded_width + h] * inverse_sum[row]);
        }
      }
    }
  }
}

// Keys that a query alone meets at a time: it is read, and its sum written, once for all of them.
constexpr std::int64_t kQueryKeys = 4;  // as forward_query() spells out, which GCC vectorises so

// Of forward_query().
template <class A>
std::int64_t query_scratch_bytes(const AttentionShape& shape) {
  return 2 * scratch_bytes<A>(round_up(shape.num_keys, kPanel<A>)) + 2 * scratch_bytes<A>(shape.H);
}

// Query t of head n alone. Keys and values are read as they lie: to copy them for one row, as for a
// tile of rows, costs more than its products. A text of 6000 tokens made one by one, heads of 32, one
// core, time of the processor in two runs each: 10.9 and 11.7 s with copies, 8.9 and 9.7 s without.
template <class T, class A = Accumulator<T>>
void forward_query(
    const HeadGroup<T>& heads, Scratch scratch, T* out, A* lse, std::int64_t n, std::int64_t t) {
  const std::int64_t width = heads.shape.H;
  const std::int64_t first = heads.first_key(t);
  const std::int64_t count = std::max<std::int64_t>(0, heads.end_key(t) - first);
  const std::int64_t padded = round_up(count, kPanel<A> / 2);
  A* const probability = scratch.take<A>(padded);
  A* const bias = scratch.take<A>(padded);
  A* const query = scratch.take<A>(width);
  A* const result = scratch.take<A>(width);
  const T* const from = heads.query(n, t);
  for (std::int64_t h = 0; h < width; ++h) {
    query[h] = static_cast<A>(from[h]);
    result[h] = 0;
  }
  for (std::int64_t s = 0; s < count; s += kQueryKeys) {
    const T* key[kQueryKeys];
    for (std::int64_t i = 0; i < kQueryKeys; ++i) {
      key[i] = heads.keys.at(first + std::min(s + i, count - 1));
    }
    A sum0 = 0;
    A sum1 = 0;
    A sum2 = 0;
    A sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
    for (std::int64_t h = 0; h < width; ++h) {
      sum0 += query[h] * static_cast<A>(key[0][h]);
      sum1 += query[h] * static_cast<A>(key[1][h]);
      sum2 += query[h] * static_cast<A>(key[2][h]);
      sum3 += query[h] * static_cast<A>(key[3][h]);
    }
    const A sum[kQueryKeys] = {sum0, sum1, sum2, sum3};
    for (std::int64_t i = 0; i < std::min(kQueryKeys, count - s); ++i) {
      probability[s + i] = sum[i];
      bias[s + i] = heads.is_valid(first + s + i) ? A{0} : -std::numeric_limits<A>::infinity();
    }
  }
  for (std::int64_t s = count; s < padded; ++s) {
    probability[s] = 0;
    bias[s] = -std::numeric_limits<A>::infinity();
  }
  const Softmax<A> softmax =
      softmax_row(probability, bias, padded, heads.score, heads.temperature(t));
  lse[heads.statistic(n, t)] = softmax.lse;
  T* const to = out + heads.output(n, t);
  if (!(softmax.sum > 0)) {
    store_mean_value(heads, to);
    return;
  }
  for (std::int64_t s = 0; s < count; s += kQueryKeys) {
    const T* value[kQueryKeys];
    A p[kQueryKeys];
    for (std::int64_t i = 0; i < kQueryKeys; ++i) {
      value[i] = heads.values.at(first + std::min(s + i, count - 1));
      p[i] = s + i < count ? probability[s + i] : A{0};
    }
#pragma omp simd
    for (std::int64_t h = 0; h < width; ++h) {
      result[h] += p[0] * static_cast<A>(value[0][h]) + p[1] * static_cast<A>(value[1][h]) +
                   p[2] * static_cast<A>(value[2][h]) + p[3] * static_cast<A>(value[3][h]);
    }
  }
  const A inverse_sum = A{1} / softmax.sum;
  for (std::int64_t h = 0; h < width; ++h) {
    to[h] = static_cast<T>(result[h] * inverse_sum);
  }
}

// From a row of q.k and of dout.v: the probabilities, and the gradient of q.k.
template <class A>
struct GradientRow {
  A* probability;  // in: q.k
  A* dscore;       // in: dout.v
  const A* bias;
  std::int64_t num_keys;
  A lse;
  A delta;
  A temperature;
};

template <class A>
void gradient_row(const GradientRow<A>& row, const AttentionScore& score) {
  // Copies, since a store through p or d might change the row's own members for all GCC knows.
  const auto [p, d, bias, num_keys, lse, delta, temperature] = row;
  if (lse == -std::numeric_limits<A>::infinity()) {
    std::fill_n(p, num_keys, A{0});
    std::fill_n(d, num_keys, A{0});
    return;
  }
  const auto scale = static_cast<A>(score.scale);
  if (score.cap > 0) {
    const A inner = scale / static_cast<A>(score.cap);
    const A outer = static_cast<A>(score.cap) * temperature;
    const A slope = scale * temperature;
#pragma omp simd
    for (std::int64_t s = 0; s < num_keys; ++s) {
      const A capped = cpu::tanh(inner * p[s]);
      p[s] = cpu::exp(outer * capped + bias[s] - lse);
      d[s] = p[s] * (d[s] - delta) * slope * (A{1} - capped * capped);
    }
  } else {
    const A factor = scale * temperature;
#pragma omp simd
    for (std::int64_t s = 0; s < num_keys; ++s) {
      p[s] = cpu::exp(factor * p[s] + bias[s] - lse);
      d[s] = p[s] * (d[s] - delta) * factor;
    }
  }
}

template <class T>
struct BackwardPointers {
  Rows<T> dqueries;  // of the group's first head
  Rows<T> dkeys;
  Rows<T> dvalues;
  std::int64_t sequence_keys;  // that a mean of values is over
  const T* dout;
  const T* out;
  const Accumulator<T>* lse;
  Accumulator<T>* delta;
};

template <class A>
std::int64_t backward_scratch_bytes(const AttentionShape& shape) {
  const std::int64_t padded_width = round_up(shape.H, kPanel<A>);
  const std::int64_t padded_keys = round_up(shape.num_keys, kPanel<A>);
  return 2 * scratch_bytes<A>(padded_keys * shape.H) +
         3 * scratch_bytes<A>(padded_keys * padded_width) +
         3 * scratch_bytes<A>(kTileQueries * padded_width) +
         2 * scratch_bytes<A>(kTileQueries * score_stride<A>(padded_keys)) +
         scratch_bytes<A>(padded_keys) + scratch_bytes<A>(padded_width);
}

template <class T, class A = Accumulator<T>>
void backward_item(const HeadGroup<T>& heads, Scratch scratch, const BackwardPointers<T>& io) {
  const std::int64_t S = heads.shape.S;
  const std::int64_t all_keys = heads.shape.num_keys;
  const std::int64_t width = heads.shape.H;
  const std::int64_t padded_width = round_up(width, kPanel<A>);
  const std::int64_t padded_keys = round_up(all_keys, kPanel<A>);
  const std::int64_t score_row = score_stride<A>(padded_keys);
  const std::int64_t tile_elements = kTileQueries * padded_width;
  const std::int64_t width_panels = padded_width / kPanel<A>;

  A* key_transposed = scratch.take<A>(padded_keys * width);
  A* value_transposed = scratch.take<A>(padded_keys * width);
  A* key = scratch.take<A>(padded_keys * padded_width);
  A* dkey = scratch.take<A>(padded_keys * padded_width);
  A* dvalue = scratch.take<A>(padded_keys * padded_width);
  A* query = scratch.take<A>(tile_elements);
  A* dresult = scratch.take<A>(tile_elements);
  A* dquery = scratch.take<A>(tile_elements);
  A* probability = scratch.take<A>(kTileQueries * score_row);
  A* dscore = scratch.take<A>(kTileQueries * score_row);
  A* bias = scratch.take<A>(padded_keys);
  A* dmean = scratch.take<A>(padded_width);  // gradient of the mean value, from rows without a key

  const std::int64_t key_stride = heads.keys.token_stride;
  pack_transposed(key_transposed, heads.keys.at(0), key_stride, all_keys, width);
  pack_transposed(value_transposed, heads.values.at(0), heads.values.token_stride, all_keys, width);
  pack_rows(key, padded_keys, padded_width, heads.keys.at(0), key_stride, all_keys, width);
  std::fill(dkey, dkey + padded_keys * padded_width, A{0});
  std::fill(dvalue, dvalue + padded_keys * padded_width, A{0});
  std::fill(dmean, dmean + padded_width, A{0});

  for (std::int64_t n = heads.first_head(); n < heads.first_head() + heads.shape.group(); ++n) {
    for (std::int64_t first = 0; first < S; first += kTileQueries) {
      const Tile<A> tile = make_tile(heads, first, S);
      const std::int64_t num_keys = tile.end_key - tile.first_key;
      const std::int64_t output_stride = heads.shape.N * width;
      pack_rows(query,
                tile.rows,
                padded_width,
                heads.query(n, first),
                heads.queries.token_stride,
                tile.count,
                width);
      pack_rows(dresult,
                tile.rows,
                padded_width,
                io.dout + heads.output(n, first),
                output_stride,
                tile.count,
                width);
      // What is read behind the next two products, and for the next tile. Attention of a step of
      // configs/bench_cpu.yaml, backward, two Zen 5 cores: 13.6 ms so, 16.3 ms without.
      ask_for_rows(io.out + heads.output(n, first), output_stride, tile.count, width);
      const std::int64_t next = first + tile.count;
      const std::int64_t num_next = std::min(kTileQueries, S - next);
      if (num_next > 0) {
        ask_for_rows(heads.query(n, next), heads.queries.token_stride, num_next, width);
        ask_for_rows(io.dout + heads.output(n, next), output_stride, num_next, width);
      }
      const TileProduct<A> scores = {.c = probability + tile.first_key,
                                     .c_row = score_row,
                                     .a = query,
                                     .a_row = padded_width,
                                     .a_column = 1,
                                     .b = key_transposed + tile.first_key * width,
                                     .b_row = kPanel<A>,
                                     .b_panel = kPanel<A> * width,
                                     .rows = tile.rows,
                                     .panels = tile.key_panels(),
                                     .depth = width};
      multiply(scores);
      TileProduct<A> dprobability = scores;
      dprobability.c = dscore + tile.first_key;
      dprobability.a = dresult;
      dprobability.b = value_transposed + tile.first_key * width;
      multiply(dprobability);

      KeyBias<T> key_bias(heads, tile, bias);
      for (std::int64_t row = 0; row < tile.count; ++row) {
        const std::int64_t t = first + row;
        const A* dout = dresult + row * padded_width;
        const T* out = io.out + heads.output(n, t);
        A delta = 0;
#pragma omp simd reduction(+ : delta)
        for (std::int64_t h = 0; h < width; ++h) {
          delta += dout[h] * static_cast<A>(out[h]);
        }
        const std::int64_t statistic = heads.statistic(n, t);
        io.delta[statistic] = delta;
        const std::int64_t num_seen = num_keys_until(heads, tile, t);
        A* const p = probability + row * score_row + tile.first_key;
        A* const d = dscore + row * score_row + tile.first_key;
        key_bias.show(t);
        gradient_row<A>({.probability = p,
                         .dscore = d,
                         .bias = bias + tile.first_key,
                         .num_keys = num_seen,
                         .lse = io.lse[statistic],
                         .delta = delta,
                         .temperature = heads.temperature(t)},
                        heads.score);
        std::fill(p + num_seen, p + num_keys, A{0});
        std::fill(d + num_seen, d + num_keys, A{0});
        if (io.lse[statistic] == -std::numeric_limits<A>::infinity()) {
          for (std::int64_t h = 0; h < width; ++h) {
            dmean[h] += dout[h];
          }
        }
      }

      multiply<A>({.c = dquery,
                   .c_row = padded_width,
                   .a = dscore + tile.first_key,
                   .a_row = score_row,
                   .a_column = 1,
                   .b = key + tile.first_key * padded_width,
                   .b_row = padded_width,
                   .b_panel = kPanel<A>,
                   .rows = tile.rows,
                   .panels = width_panels,
                   .depth = num_keys});
      for (std::int64_t row = 0; row < tile.count; ++row) {
        T* to = io.dqueries.at(first + row) + (n - heads.first_head()) * width;
        for (std::int64_t h = 0; h < width; ++h) {
          to[h] = static_cast<T>(dquery[row * padded_width + h]);
        }
      }
      const TileProduct<A> dkeys = {.c = dkey + tile.first_key * padded_width,
                                    .c_row = padded_width,
                                    .a = dscore + tile.first_key,
                                    .a_row = 1,
                                    .a_column = score_row,
                                    .b = query,
                                    .b_row = padded_width,
                                    .b_panel = kPanel<A>,
                                    .rows = num_keys,
                                    .panels = width_panels,
                                    .depth = tile.count,
                                    .accumulate = true};
      multiply(dkeys);
      TileProduct<A> dvalues = dkeys;
      dvalues.c = dvalue + tile.first_key * padded_width;
      dvalues.a = probability + tile.first_key;
      dvalues.b = dresult;
      multiply(dvalues);
    }
  }

  for (std::int64_t s = 0; s < all_keys; ++s) {
    T* const dkey_to = io.dkeys.at(s);
    T* const dvalue_to = io.dvalues.at(s);
    for (std::int64_t h = 0; h < width; ++h) {
      const std::int64_t at = s * padded_width + h;
      dkey_to[h] = static_cast<T>(dkey[at]);
      dvalue_to[h] = static_cast<T>(dvalue[at] + dmean[h] / static_cast<A>(io.sequence_keys));
    }
  }
}

void check_score(const OpCheck& check, const AttentionScore& score) {
  check.condition(
      score.scale > 0 && score.cap >= 0 && std::isfinite(score.scale) && std::isfinite(score.cap),
      [&] {
        return "score.scale " + std::to_string(score.scale) + " and score.cap " +
               std::to_string(score.cap) +
               " are not usable (the largest product is to be the largest logit, and a cap bounds "
               "|logit|); use a finite scale above 0 and a cap of 0 or more";
      });
  check.condition(score.temperature_len == 0 || score.temperature_len >= 2, [&] {
    return "score.temperature_len is " + std::to_string(score.temperature_len) +
           " (its logarithm divides); use 0 for none, or 2 or more";
  });
}

// The operands that both directions have.
template <class Operands>
void check_operands(const OpCheck& check, const Operands& op, Stream stream) {
  check.num_dims("lse_BNS", op.lse_BNS, 3);
  check.num_dims("q_TNH", op.q_TNH.buffer_TCH, 3);
  check.num_dims("k_UGH", op.k_UGH.buffer_TCH, 3);
  const DType dtype = op.q_TNH.dtype();
  const std::int64_t H = op.q_TNH.width();
  const std::int64_t B = op.lse_BNS.dim(0);
  const std::int64_t N = op.lse_BNS.dim(1);
  const std::int64_t T = B * op.lse_BNS.dim(2);
  const std::int64_t U = op.k_UGH.num_tokens();
  const std::int64_t G = op.k_UGH.num_heads;
  check.float_dtype("q_TNH", dtype);
  check.condition(N >= 1 && G >= 1 && N % G == 0, [&] {
    return std::to_string(G) + " key/value heads for " + std::to_string(N) +
           " query heads (a key/value head serves as many query heads as any other)";
  });
  check.condition(T * N <= std::numeric_limits<std::uint32_t>::max(), [&] {
    return std::to_string(T) + " tokens of " + std::to_string(N) +
           " heads (their rows are numbered in 32 bits); attend to fewer at a time";
  });
  check.condition(B == 0 ? U == 0 : U % B == 0, [&] {
    return "k_UGH has " + std::to_string(U) + " tokens for " + std::to_string(B) +
           " sequences (each has as many keys)";
  });
  check.condition(stream.device == Device::cpu || (H % 8 == 0 && H >= 8 && H <= 128), [&] {
    return "a head is " + std::to_string(H) +
           " wide (on cuda a multiple of 8 up to 128); "
           "change model.head_dim";
  });
  check.tensor("out_TNH", op.out_TNH, {T, N, H}, dtype);
  check.tensor("lse_BNS", op.lse_BNS, {B, N, op.lse_BNS.dim(2)}, accumulation_dtype(dtype));
  check_heads(check, "q_TNH", op.q_TNH, T, N, H, dtype);
  check_heads(check, "k_UGH", op.k_UGH, U, G, H, dtype);
  check_heads(check, "v_UGH", op.v_UGH, U, G, H, dtype);
  check.tensor("position_T", op.position_T, {T}, DType::i32);
  check.optional_tensor("place_T", op.place_T, {T}, DType::i32);
  check.optional_tensor("key_place_U", op.key_place_U, {U}, DType::i32);
  check.optional_tensor("key_valid_U", op.key_valid_U, {U}, DType::u8);
  check_score(check, op.score);
}

template <class T>
void forward_cpu(const AttentionForward& op) {
  const AttentionShape shape = attention_shape(op);
  if (shape.S == 1) {
    const ThreadScratch scratch(query_scratch_bytes<Accumulator<T>>(shape));
    parallel_chunks(shape.B * shape.N, [&](std::int64_t item) {
      const HeadGroup<T> heads = head_group<T>(op, shape, item / shape.group());
      forward_query(heads,
                    scratch.mine(),
                    op.out_TNH.as<T>(),
                    op.lse_BNS.as<Accumulator<T>>(),
                    heads.first_head() + item % shape.group(),
                    0);
    });
    return;
  }
  const std::int64_t items_per_group = (shape.S + kItemQueries - 1) / kItemQueries;
  const ThreadScratch scratch(forward_scratch_bytes<Accumulator<T>>(shape));
  parallel_chunks(shape.B * shape.G * items_per_group, [&](std::int64_t item) {
    const std::int64_t begin = item % items_per_group * kItemQueries;
    forward_item(head_group<T>(op, shape, item / items_per_group),
                 scratch.mine(),
                 op.out_TNH.as<T>(),
                 op.lse_BNS.as<Accumulator<T>>(),
                 begin,
                 std::min(shape.S, begin + kItemQueries));
  });
}

template <class T>
void backward_cpu(const AttentionBackward& op) {
  const AttentionShape shape = attention_shape(op);
  const ThreadScratch scratch(backward_scratch_bytes<Accumulator<T>>(shape));
  parallel_chunks(shape.B * shape.G, [&](std::int64_t item) {
    const HeadGroup<T> heads = head_group<T>(op, shape, item);
    const std::int64_t B = shape.B;
    backward_item<T>(heads,
                     scratch.mine(),
                     {.dqueries = rows_of<T>(op.dq_TNH, B, heads.b, heads.first_head()),
                      .dkeys = rows_of<T>(op.dk_UGH, B, heads.b, heads.g),
                      .dvalues = rows_of<T>(op.dv_UGH, B, heads.b, heads.g),
                      .sequence_keys = op.sequence_keys == 0 ? shape.num_keys : op.sequence_keys,
                      .dout = op.dout_TNH.as<T>(),
                      .out = op.out_TNH.as<T>(),
                      .lse = op.lse_BNS.as<Accumulator<T>>(),
                      .delta = op.delta_BNS.as<Accumulator<T>>()});
  });
}

// Of one head's queries and keys, causal: half of a square where both are the same. Documents make it
// less, by what only their positions tell.
template <class Op>
void count_products(const OpCheck& check, const Op& op, std::int64_t count) {
  const AttentionShape s = attention_shape(op);
  const std::int64_t pairs = s.num_keys == s.S ? s.S * (s.S + 1) / 2 : s.S * s.num_keys;
  check.product(count * s.B * s.N, pairs, s.H);
}

}  // namespace

void attention_forward(const AttentionForward& op, Stream stream) {
  const OpCheck check("attention_forward", stream);
  check_operands(check, op, stream);
  count_products(check, op, 2);
  if (stream.device == Device::cuda) {
    return cuda::attention_forward(op, stream);
  }
  visit_float(op.q_TNH.dtype(), [&]<class T>() { forward_cpu<T>(op); });
}

void attention_backward(const AttentionBackward& op, Stream stream) {
  const OpCheck check("attention_backward", stream);
  check_operands(check, op, stream);
  const DType dtype = op.q_TNH.dtype();
  const std::int64_t N = op.q_TNH.num_heads;
  const std::int64_t G = op.k_UGH.num_heads;
  const std::int64_t T = op.q_TNH.num_tokens();
  const std::int64_t U = op.k_UGH.num_tokens();
  const std::int64_t H = op.q_TNH.width();
  const TensorView& lse = op.lse_BNS;
  check_heads(check, "dq_TNH", op.dq_TNH, T, N, H, dtype);
  check_heads(check, "dk_UGH", op.dk_UGH, U, G, H, dtype);
  check_heads(check, "dv_UGH", op.dv_UGH, U, G, H, dtype);
  check.tensor("dout_TNH", op.dout_TNH, {T, N, H}, dtype);
  check.tensor("delta_BNS", op.delta_BNS, {lse.dim(0), lse.dim(1), lse.dim(2)}, lse.dtype);
  check.condition(!op.workspace_W.present() ||
                      (op.workspace_W.dtype == DType::u8 &&
                       reinterpret_cast<std::uintptr_t>(op.workspace_W.data) % 16 == 0),
                  [&] {
                    return "workspace_W is not 16-byte aligned, or not of u8 (it is for one kernel "
                           "to divide); allocate it so";
                  });
  check.condition(op.sequence_keys == 0 || op.sequence_keys * lse.dim(0) >= U, [&] {
    return "sequence_keys is " + std::to_string(op.sequence_keys) +
           ", less than the keys of this call (it counts those of all parts); use 0 where there "
           "is one part";
  });
  count_products(check, op, 5);
  if (stream.device == Device::cuda) {
    return cuda::attention_backward(op, stream);
  }
  visit_float(dtype, [&]<class T>() { backward_cpu<T>(op); });
}

std::size_t attention_backward_workspace_bytes(const AttentionBackward& op, Device device) {
  return device == Device::cuda ? cuda::attention_backward_workspace_bytes(op) : 0;
}

}  // namespace memphis::kernels
