// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <limits>

#include "csrc/core/parallel.h"
#include "kernels/attention/attention_cpu.h"
#include "kernels/cpu/ahead.h"
#include "kernels/cpu/math.h"

namespace memphis::kernels::cpu {
namespace {

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
  HeadRows<T> dqueries;  // of the group's first head
  HeadRows<T> dkeys;
  HeadRows<T> dvalues;
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
      const QueryTile<A> tile = make_tile(heads, first, S);
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

}  // namespace

template <class T>
void attention_backward(const AttentionBackward& op) {
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

template void attention_backward<float>(const AttentionBackward&);
template void attention_backward<bf16>(const AttentionBackward&);
template void attention_backward<double>(const AttentionBackward&);

}  // namespace memphis::kernels::cpu
