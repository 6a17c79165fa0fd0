// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention/attention_shape.h"

// How Hopper's backward kernel of attention cuts and orders its work.
namespace memphis::kernels {

// A work item is a tile of keys of one key/value head, and a slice of the steps that it takes: a
// step is a tile of queries of one query head that sees any of these keys. What items add to the
// same sum they add in the order of the items, each after it has waited for those before it.
struct HopperBackwardPlan {
  static constexpr std::int64_t kQueries = 64;
  static constexpr std::int64_t kKeys = 128;

  int num_query_tiles;  // of a sequence
  int num_key_tiles;    // of a sequence
  int num_slices;       // of a tile of keys
  int band;             // tiles of keys, see hopper_key_tile
  int num_items;
};

// Items are taken by ticket, in ascending order, so that whoever waits for lower items waits for
// blocks that have begun: they cannot stand still, in whatever order blocks run.
//
// The first tiles of keys are seen by the most queries, and long items are to come first; but an
// item begins with the queries of its own place, which those before it come to last. So tiles come
// in bands, as many as run at once: bands ascend, and within a band tiles descend. There an item
// finds that the one before it is a step ahead of it, all along.
constexpr int hopper_key_tile(int position, int band, int num_tiles) {
  const int first = position / band * band;
  const int last = (first + band < num_tiles ? first + band : num_tiles) - 1;
  return last - (position - first);
}

// How many of the tiles of keys `first` to `last`, of which `tile` is one, come before it.
constexpr int hopper_key_tiles_before(int tile, int first, int last, int band) {
  const int band_first = tile / band * band;
  const int newest = band_first + band - 1 < last ? band_first + band - 1 : last;
  return (band_first > first ? band_first - first : 0) + newest - tile;
}

// Four items for each of the 132 multiprocessors of an H100, the long ones first, end within 2 to
// 8 % of each other, two within 27 %. Where tiles of keys are fewer, as those of one key/value
// head, they are sliced. A slice has eight steps or more, which pay for handing on the sums. Not
// asked of the device: bits would depend on it.
constexpr HopperBackwardPlan hopper_backward_plan(const AttentionShape& shape) {
  constexpr std::int64_t kMultiprocessors = 132;
  constexpr std::int64_t kItemsWanted = 4 * kMultiprocessors;
  constexpr std::int64_t kStepsOfSlice = 8;
  const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const auto least = [](std::int64_t a, std::int64_t b) { return a < b ? a : b; };
  const std::int64_t query_tiles = ceil_div(shape.S, HopperBackwardPlan::kQueries);
  const std::int64_t key_tiles = ceil_div(shape.num_keys, HopperBackwardPlan::kKeys);
  const std::int64_t whole = shape.B * shape.G * key_tiles;
  const std::int64_t most = shape.group() * query_tiles / kStepsOfSlice;
  const std::int64_t slices = least(most < 1 ? 1 : most, ceil_div(kItemsWanted, whole));
  const std::int64_t at_once = kMultiprocessors / (shape.B * shape.G * slices);
  return {.num_query_tiles = static_cast<int>(query_tiles),
          .num_key_tiles = static_cast<int>(key_tiles),
          .num_slices = static_cast<int>(slices),
          .band = static_cast<int>(least(at_once < 1 ? 1 : at_once, key_tiles)),
          .num_items = static_cast<int>(whole * slices)};
}

namespace cuda {

template <class T>
struct AttentionArguments;

// Where hopper_takes_attention, with attention_backward_hopper_bytes of workspace, 16-byte aligned,
// which nobody else uses meanwhile. Requires a query and a key in each sequence; finds delta
// computed.
void launch_attention_backward_hopper(const AttentionArguments<bf16>& arguments,
                                      void* workspace,
                                      Stream stream);
std::size_t attention_backward_hopper_bytes(const AttentionShape& shape);

}  // namespace cuda
}  // namespace memphis::kernels
