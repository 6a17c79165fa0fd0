// SPDX-License-Identifier: Apache-2.0
//
// The small passes around Hopper's backward kernel of attention: what is the same for all tiles of
// a row, computed once, and the rounding of dq. Bound by memory; most of it is dq's sums, 4 bytes
// an element read for 2 written.
#include <algorithm>
#include <climits>
#include <cmath>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/attention/attention_bf16_tile.h"
#include "kernels/attention/attention_hopper_backward_workspace.h"

namespace memphis::kernels::cuda {
namespace {

// grid: a block each tile of queries of a head, then each tile of keys; block: kKeys; shared: none.
template <bool kCapped>
__global__ void attention_backward_prepare_kernel(
    const __grid_constant__ BackwardArguments arguments) {
  const AttentionArguments<bf16>& attention = arguments.attention;
  const AttentionShape& shape = attention.shape;
  const Workspace& workspace = arguments.workspace;
  const int query_tiles = arguments.plan.num_query_tiles;
  const int key_tiles = arguments.plan.num_key_tiles;
  const auto num_heads = static_cast<int>(shape.N);
  const auto thread = static_cast<int>(threadIdx.x);
  const auto index = static_cast<int>(blockIdx.x);
  const int query_blocks = static_cast<int>(shape.B) * num_heads * query_tiles;

  if (index < query_blocks) {
    if (thread >= kQueries) {
      return;
    }
    const int tile = index % query_tiles;
    const AttentionHead<bf16> head = {
        attention, index / query_tiles / num_heads, index / query_tiles % num_heads};
    const int first = tile * kQueries;
    const bool inside = first + thread < head.num_tokens();
    const int t = inside ? first + thread : head.num_tokens() - 1;
    const float lse = inside ? attention.lse[head.statistic(t)] : -INFINITY;
    const float delta = inside ? attention.delta[head.statistic(t)] : 0.0F;
    const LogitFactors factors = Bend<kCapped>(attention).factors(head.temperature(t));
    QueryRows& rows = workspace.rows[index];
    rows.logit[thread] = {.factor = factors.factor,
                          .offset = lse == -INFINITY ? -INFINITY : factors.shift - kLog2E * lse};
    rows.gradient[thread] = {.slope = factors.slope, .shift = -factors.slope * delta};
    rows.first_key[thread] = head.first_key(t);
    rows.exponent = 2.0F * kLog2E * (attention.scale / attention.cap);
    if (thread == 0) {
      workspace.query_turn[index] = 0;
      const int last = std::min(first + kQueries, head.num_tokens()) - 1;
      const int oldest = head.first_key(first);
      const int end = head.last_key(last) + 1;
      workspace.seen[head.b * query_tiles + tile] = {
          .first_tile = oldest < head.num_keys() ? oldest / kKeys : key_tiles,
          .last_tile = static_cast<int>(ceil_div(end, kKeys)) - 1,
          .oldest_key = head.first_key(last)};
    }
    if (index == 0 && thread == 0) {
      *workspace.ticket = 0;
    }
    return;
  }

  const int own = index - query_blocks;  // of [B, tiles of keys]
  const int tile = own % key_tiles;
  const AttentionHead<bf16> head = {attention, own / key_tiles, 0};
  const int first = tile * kKeys;
  const int s = first + thread;
  // Nobody sees what is no key.
  workspace.first_query[own * kKeys + thread] =
      s < head.num_keys() && head.key_valid(s) ? head.first_query(s) : INT_MAX;
  for (int i = thread; i < static_cast<int>(shape.G) * kConsumers; i += kKeys) {
    const int g = i / kConsumers;
    workspace.key_turn[((head.b * static_cast<int>(shape.G) + g) * key_tiles + tile) * kConsumers +
                       i % kConsumers] = 0;
  }
  if (thread == 0) {
    const int last = std::min(first + kKeys, head.num_keys()) - 1;
    const int begin = head.first_query(first);
    const int first_tile = begin / kQueries;
    const int end_tile = static_cast<int>(ceil_div(head.end_query(last), kQueries));
    const bool whole = last == first + kKeys - 1 && attention.key_valid == nullptr;
    workspace.key_tile[own] = {
        .first_tile = first_tile,
        .num_tiles = begin < head.num_tokens() ? std::max(0, end_tile - first_tile) : 0,
        .all_query = whole ? head.first_query(last) : INT_MAX};
  }
}

// dq from its sums.
// grid: a block each tile of queries of a head; block: kWriters; shared: none. A thread has rows g
// and g + 8 of a warp's 16, and eight columns: four neighbours' accumulators.
constexpr int kWriters = 256;
__global__ void __launch_bounds__(kWriters)
    attention_backward_write_kernel(const __grid_constant__ BackwardArguments arguments) {
  const AttentionArguments<bf16>& attention = arguments.attention;
  const int query_tiles = arguments.plan.num_query_tiles;
  const auto index = static_cast<int>(blockIdx.x);
  const auto num_heads = static_cast<int>(attention.shape.N);
  const int tile = index % query_tiles;
  const AttentionHead<bf16> head = {
      attention, index / query_tiles / num_heads, index / query_tiles % num_heads};
  const HeadRows<bf16> dqueries = head.of_queries(attention.dquery);
  const Seen seen = arguments.workspace.seen[head.b * query_tiles + tile];
  const bool has_sums = seen.first_tile <= seen.last_tile;  // else nothing was stored
  const float* const sums = arguments.workspace.dquery + std::int64_t{index} * kTileOfQueries;
  constexpr int kUnits = kTileOfQueries / 16;
  for (int unit = static_cast<int>(threadIdx.x); unit < kUnits; unit += kWriters) {
    const int group = unit % 8;
    const int warp = unit / 32 % kWarpsOfGroup;
    const int columns = unit / 8 % 4 + unit / 128 * 4;  // eight of them each
    float rows[2][8] = {};
    if (has_sums) {
      const float* const from =
          sums + ((columns * kWarpsOfGroup + warp) * gpu::kWarpSize + group * 4) * 4;
#pragma unroll
      for (int lane = 0; lane < 4; ++lane) {
        const Quad quad = gpu::load_vector(from + lane * 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          rows[i / 2][lane * 2 + i % 2] = quad.values[i];
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = tile * kQueries + warp * 16 + group + half * 8;
      if (t < head.num_tokens()) {
        gpu::store_floats(dqueries.data + t * dqueries.stride + columns * 8, rows[half]);
      }
    }
  }
}

std::int64_t query_blocks(const BackwardArguments& arguments) {
  const AttentionShape& shape = arguments.attention.shape;
  return shape.B * shape.N * arguments.plan.num_query_tiles;
}

}  // namespace

void launch_attention_backward_prepare(const BackwardArguments& arguments, Stream stream) {
  const std::int64_t key_blocks = arguments.attention.shape.B * arguments.plan.num_key_tiles;
  const Launch launched = {
      .grid = {.x = query_blocks(arguments) + key_blocks}, .block = {.x = kKeys}, .stream = stream};
  if (arguments.attention.cap > 0.0F) {
    launch(attention_backward_prepare_kernel<true>, launched, arguments);
  } else {
    launch(attention_backward_prepare_kernel<false>, launched, arguments);
  }
}

void launch_attention_backward_write(const BackwardArguments& arguments, Stream stream) {
  launch(attention_backward_write_kernel,
         {.grid = {.x = query_blocks(arguments)}, .block = {.x = kWriters}, .stream = stream},
         arguments);
}

}  // namespace memphis::kernels::cuda
