// SPDX-License-Identifier: Apache-2.0
//
// Attention of bf16 heads 128 wide on sm_90a, forward.
//
// Items. A block stays on its SM for the whole launch and takes items of 128 queries of one head,
// longest first. Keys go by in tiles of 128, newest first: those on the diagonal, which the mask
// cuts, the interior, which needs none, and those in which documents begin.
//
// Warpgroups. One produces: a single thread of it fetches queries, keys and values by TMA. Two
// consume, 64 queries each: scores s = q k^T, probabilities p and results o = p v stay in their
// registers, of which they have those that the producer does without.
//
//   buffer      KiB      filled, arrivals   read, arrivals   a phase        read until
//   query       32       query_full, 1      query_empty, 8   an item        its last scores
//   key[2]      2 x 32   key_full, 1        key_empty, 8     every second   the tile's scores
//   value[2]    2 x 32   value_full, 1      value_empty, 8   tile           its product, a step on
//   out[2]      2 x 16   named barrier kStore + consumer     an item        TMA has stored it
//
// 1 is the producer, with the bytes that TMA brings; 8 are the warps of both consumers.
//
// Turns. A consumer issues two products at once, the scores of tile i and p v of tile i - 1, and
// makes p of tile i while the second runs. The consumers issue in turns, so that the tensor cores
// have one's products while the other makes probabilities:
//
//   tensor cores   s(i) p v(i-1) of 0 | s(i) p v(i-1) of 1 | s(i+1) p v(i) of 0 | ...
//   consumer 0                          p(i)               |                      p(i+1)
//   consumer 1     p(i-1)             |                      p(i)               | ...
//
// Barrier kTurn + c is of 256 threads: those of consumer c wait there, the other's arrive when they
// have issued. A tile takes a turn of each; an item's last p v is issued out of turn. Consumer 1
// arrives once more before its first, so that the first turn is 0's, which waits once more at the
// end: the barrier is left as it was.
//
// Softmax. A cap bounds logits from both sides, so that any fixed offset of a certain range keeps
// all exponentials and their sum within f32 (see hopper_lowest_offset): the first tile chooses one,
// and nothing is compared or rescaled after it. Without a cap, or with one too large for that, the
// maximum runs and results are rescaled, as in FlashAttention-2.
// The cap costs an exponential and a quarter of a reciprocal: see kernels/device/soft_cap.h.
//
// Bound by the special-function unit and the tensor cores alike with a cap, 16 cycles of either for
// a warp's 32 scores: of two exponentials and a quarter of a reciprocal a score, a quarter of an
// exponential is made of products, see exp2_polynomial.h. Issuing what there is takes 14 cycles.
// Not measured.
//
// Source: Shah et al. 2024, arXiv:2407.08608 (warp specialisation, turns, two products at once).
#include <algorithm>
#include <cmath>

#include <gpu_hopper_barrier.h>
#include <gpu_hopper_tma.h>
#include <gpu_hopper_wgmma.h>
#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_mma.h>
#include <gpu_warp.h>

#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/attention_hopper.h"
#include "kernels/attention/attention_hopper_softmax.h"
#include "kernels/attention/attention_hopper_tile.h"

namespace memphis::kernels::cuda {
namespace {

using namespace hopper_forward;

constexpr int kQueries = 128;  // of a block: a tile
constexpr int kStages = Place::kStages;
constexpr int kConsumers = 2;
constexpr int kConsumerQueries = kQueries / kConsumers;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kReaders = kConsumers * kWarpsOfGroup;  // warps, each of which gives a stage back

// A thread has 168 registers at the launch; a consumer holds 64 scores, 64 results and 32
// registers of probabilities.
constexpr int kProducerRegisters = 24;
constexpr int kConsumerRegisters = 240;
static_assert(registers_suffice(kProducerRegisters, kConsumers, kConsumerRegisters));

// Named barriers; 0 is the block's.
constexpr int kTurn = 1;                    // + consumer: it may issue its products; 256 threads
constexpr int kStore = kTurn + kConsumers;  // + consumer: of its own threads; 128

struct alignas(1024) Shared {
  Tile<kQueries> query;
  Tile<kKeys> key[kStages];
  Tile<kKeys> value[kStages];
  Tile<kConsumerQueries> out[kConsumers];
  gpu::Mbarrier query_full;
  gpu::Mbarrier query_empty;
  gpu::Mbarrier key_full[kStages];
  gpu::Mbarrier key_empty[kStages];
  gpu::Mbarrier value_full[kStages];
  gpu::Mbarrier value_empty[kStages];
};

struct ForwardMaps {
  TensorMap query;
  TensorMap key;
  TensorMap value;
  TensorMap out;
};

// A tile of queries of one head, and its tiles of keys, from `last_tile` down to `first_tile`. All
// of its queries see all keys of the tiles from `interior` to before `end_interior`; the others
// need the mask. There is always a tile: if no query sees a key, the mask hides all of it.
struct Item {
  int b;
  int n;
  int first_query;
  int last_tile;
  int end_interior;
  int interior;
  int first_tile;
  bool has_offset;  // all rows have a fixed offset, see hopper_lowest_offset

  __device__ __forceinline__ Item(const AttentionArguments<bf16>& arguments, int index) {
    const AttentionShape& shape = arguments.shape;
    const auto N = static_cast<int>(shape.N);
    const int heads = static_cast<int>(shape.B) * N;
    const auto num_tiles = static_cast<int>(ceil_div(shape.S, kQueries));
    b = index % heads / N;
    n = index % heads % N;
    first_query = (num_tiles - 1 - index / heads) * kQueries;
    const AttentionHead<bf16> head = {arguments, b, n};
    const int last_query = std::min(first_query + kQueries, head.num_tokens()) - 1;
    first_tile = head.first_key(first_query) / kKeys;
    last_tile = std::max(first_tile, head.last_key(last_query) / kKeys);
    interior = (head.first_key(last_query) + kKeys - 1) / kKeys;
    end_interior =
        arguments.key_valid == nullptr ? (head.last_key(first_query) + 1) / kKeys : first_tile;
    // Documents begin one after the other, so no position is above the first one's, counted on.
    const int largest = arguments.position[head.token(first_query)] + head.place(last_query) -
                        head.place(first_query);
    const float c = kLog2E * arguments.cap * temperature_at(arguments, largest);
    has_offset = arguments.cap > 0.0F &&
                 hopper_lowest_offset(c, log2f(static_cast<float>(shape.num_keys))) <=
                     hopper_highest_offset(c);
  }
};

// Calls body(item) for each of this block's.
template <class Body>
__device__ __forceinline__ void for_each_item(const AttentionArguments<bf16>& arguments,
                                              const Body& body) {
  const AttentionShape& shape = arguments.shape;
  const auto count = static_cast<int>(shape.B * shape.N * ((shape.S + kQueries - 1) / kQueries));
  for (int round = 0;; ++round) {
    const int index = hopper_item(round, static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
    if (index >= count) {
      return;
    }
    body(Item(arguments, index));
  }
}

// ---- the producer

// The tile that `full` then says is there, when all readers have left what was there before.
template <int kRows>
__device__ __forceinline__ void fetch(Tile<kRows>& tile,
                                      const TensorMap& map,
                                      gpu::Mbarrier* full,
                                      gpu::Mbarrier* empty,
                                      unsigned parity,
                                      int row,
                                      int head,
                                      int b) {
  gpu::mbarrier_wait(empty, parity ^ 1U);
  gpu::mbarrier_arrive_expect(full, static_cast<int>(sizeof(tile)));
  gpu::tma_load(&tile, map, full, 0, row, 0, head, b);
}

// One thread.
__device__ __forceinline__ void produce(const AttentionArguments<bf16>& arguments,
                                        const ForwardMaps& maps,
                                        Shared& shared) {
  gpu::tma_prefetch_descriptor(maps.query);
  gpu::tma_prefetch_descriptor(maps.key);
  gpu::tma_prefetch_descriptor(maps.value);
  unsigned query_parity = 0;
  Place place;
  for_each_item(arguments, [&](const Item& item) {
    const auto g = static_cast<int>(item.n / arguments.shape.group());
    fetch(shared.query,
          maps.query,
          &shared.query_full,
          &shared.query_empty,
          query_parity,
          item.first_query,
          item.n,
          item.b);
    query_parity ^= 1U;
    for (int tile = item.last_tile; tile >= item.first_tile; --tile) {
      const int stage = place.stage();
      fetch(shared.key[stage],
            maps.key,
            &shared.key_full[stage],
            &shared.key_empty[stage],
            place.parity(),
            tile * kKeys,
            g,
            item.b);
      fetch(shared.value[stage],
            maps.value,
            &shared.value_full[stage],
            &shared.value_empty[stage],
            place.parity(),
            tile * kKeys,
            g,
            item.b);
      place.advance();
    }
  });
}

// ---- the consumers

template <bool kCapped>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const AttentionArguments<bf16>& arguments,
                                      const ForwardMaps& maps,
                                      Shared& shared)
      : arguments_(arguments),
        maps_(maps),
        shared_(shared),
        consumer_(consumer_index()),
        slope_(2.0F * kLog2E * (arguments.scale / arguments.cap)),
        query_(
            rows_descriptor(&shared.query.half[0][consumer_ * kConsumerQueries], kLeadingUnused)),
        key_(rows_descriptor(&shared.key, kLeadingUnused)),
        value_(rows_descriptor(&shared.value, Tile<kKeys>::kHalfBytes)) {}

  __device__ __forceinline__ void run() {
    if (consumer_ == 1) {
      gpu::arrive_named(kTurn, kConsumers * kWarpgroup);  // the first turn is the other's
    }
    for_each_item(arguments_, [&](const Item& item) {
      if constexpr (kCapped) {
        if (gpu::shuffle_from(item.has_offset ? 1 : 0, 0) != 0) {
          attend<Offset::first, Offset::fixed>(item);
          return;
        }
      }
      attend<Offset::running, Offset::running>(item);
    });
    if (consumer_ == 0) {
      gpu::sync_named(kTurn, kConsumers * kWarpgroup);  // the last turn that was passed on
    }
    if (is_storing()) {
      gpu::tma_wait<0>();
    }
  }

 private:
  template <Offset kFirst, Offset kOthers>
  __device__ __forceinline__ void attend(const Item& item) {
    const AttentionHead<bf16> head = {arguments_, item.b, item.n};
    const int first_query = item.first_query + consumer_ * kConsumerQueries;
    rows_.begin(head, first_query);
    gpu::mbarrier_wait(&shared_.query_full, query_parity_);
    query_parity_ ^= 1U;

    // The newest tile comes first: there are no probabilities of one before it.
    float rescale[2];
    take_turn();
    gpu::mbarrier_wait(&shared_.key_full[place_.stage()], place_.parity());
    gpu::wgmma_fence(rows_.score);
    issue_scores();
    pass_turn();
    gpu::wgmma_wait<0>(rows_.score);
    release(&shared_.key_empty[place_.stage()]);
    rows_.template softmax<true, kFirst>(head, item.last_tile * kKeys, slope_, rescale);
    await_values();
    place_.advance_uniformly();
    rows_.template take_probabilities<kFirst>(rescale);

    // What is left of the diagonal, where tiles of queries and keys do not lie side by side; the
    // interior, which needs no mask; tiles in which documents begin. The compiler is told that the
    // bounds are the same in all lanes: products may run from one turn to the next.
    const int end_interior = gpu::shuffle_from(item.end_interior, 0);
    const int interior = gpu::shuffle_from(item.interior, 0);
    const int first_tile = gpu::shuffle_from(item.first_tile, 0);
    int tile = item.last_tile - 1;
    for (; tile >= end_interior; --tile) {
      step<true, kOthers>(head, tile);
    }
    for (; tile >= interior; --tile) {
      step<false, kOthers>(head, tile);
    }
    for (; tile >= first_tile; --tile) {
      step<true, kOthers>(head, tile);
    }
    release(&shared_.query_empty);

    gpu::wgmma_fence(rows_.result, rows_.probability);
    issue_results(place_.stage_before());
    gpu::wgmma_wait<0>(rows_.result, rows_.probability);
    release(&shared_.value_empty[place_.stage_before()]);
    store(head, first_query);
  }

  // Scores and probabilities of this tile, beside p v of the one before, whose values have been
  // waited for. In the end place_ is the next tile's, and stage_before() this one's.
  template <bool kMasked, Offset kOffset>
  __device__ __forceinline__ void step(const AttentionHead<bf16>& head, int tile) {
    take_turn();
    gpu::mbarrier_wait(&shared_.key_full[place_.stage()], place_.parity());
    gpu::wgmma_fence(rows_.score, rows_.result, rows_.probability);
    issue_scores();
    issue_results(place_.stage_before());
    pass_turn();
    gpu::wgmma_wait<1>(rows_.score);
    release(&shared_.key_empty[place_.stage()]);
    float rescale[2];
    rows_.template softmax<kMasked, kOffset>(head, tile * kKeys, slope_, rescale);
    await_values();
    gpu::wgmma_wait<0>(rows_.result, rows_.probability);
    release(&shared_.value_empty[place_.stage_before()]);
    place_.advance_uniformly();
    rows_.template take_probabilities<kOffset>(rescale);
  }

  __device__ __forceinline__ void issue_scores() {
    const std::uint64_t key = advance(key_, place_.stage() * static_cast<int>(sizeof(Tile<kKeys>)));
#pragma unroll
    for (int k = 0; k < kHopperWidth; k += 16) {
      const int half = k / kHalfWidth;
      const int bytes = k % kHalfWidth * 2;
      gpu::wgmma<Major::k, Major::k>(rows_.score,
                                     advance(query_, half * Tile<kQueries>::kHalfBytes + bytes),
                                     advance(key, half * Tile<kKeys>::kHalfBytes + bytes),
                                     k != 0);
    }
    gpu::wgmma_commit();
  }
  __device__ __forceinline__ void issue_results(int stage) {
    const std::uint64_t value = advance(value_, stage * static_cast<int>(sizeof(Tile<kKeys>)));
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      gpu::wgmma<Major::mn>(
          rows_.result, rows_.probability[k], advance(value, k * 16 * kRowBytes), true);
    }
    gpu::wgmma_commit();
  }

  // Waits for the values that the next step multiplies by this tile's probabilities. It would do to
  // wait there; they are fetched before the next tile's keys, so that it costs no time here. It is
  // here for the assembler: the wait is a branch, so that all exponentials come before it and the
  // wait for products (wgmma_wait<0>) after it. Without a branch between them the assembler puts
  // that wait first, and the tensor cores have nothing to do during the exponentials.
  __device__ __forceinline__ void await_values() {
    gpu::pin_registers(rows_.score);
    gpu::mbarrier_wait(&shared_.value_full[place_.stage()], place_.parity());
  }

  // The two consumers issue in turns.
  __device__ __forceinline__ void take_turn() {
    gpu::sync_named(kTurn + consumer_, kConsumers * kWarpgroup);
  }
  __device__ __forceinline__ void pass_turn() {
    gpu::arrive_named(kTurn + 1 - consumer_, kConsumers * kWarpgroup);
  }

  // The thread that stores for the warpgroup, always the same.
  __device__ __forceinline__ bool is_storing() const {
    return gpu::warp_id() % kWarpsOfGroup == 0 && gpu::elect_one();
  }

  // Normalise and write. A row without a key has sum 0 and gets its mean from another kernel.
  __device__ __forceinline__ void store(const AttentionHead<bf16>& head, int first_query) {
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = row_sum(rows_.sum[half]);
      inverse[half] = total > 0.0F ? 1.0F / total : 0.0F;
      const int t = rows_.row(first_query, half);
      if (t < head.num_tokens() && gpu::lane_id() % 4 == 0) {
        arguments_.lse[head.statistic(t)] =
            total > 0.0F ? kLn2 * rows_.offset[half] + logf(total) : -INFINITY;
      }
    }

    // The store of the item before has read the tile.
    Tile<kConsumerQueries>& tile = shared_.out[consumer_];
    if (is_storing()) {
      gpu::tma_wait_read<0>();
    }
    gpu::sync_named(kStore + consumer_, kWarpgroup);

    // Each lane gives the address of one row of one of the 8x8 matrices of 16 columns: rows 0-7 and
    // 8-15 of columns 0-7, then both of columns 8-15.
    auto* const bytes = reinterpret_cast<unsigned char*>(&tile);
    const int lane = gpu::lane_id();
    const int row = gpu::warp_id() % kWarpsOfGroup * 16 + lane % 16;
#pragma unroll
    for (int k = 0; k < kHopperWidth / 16; ++k) {
      std::uint32_t fragment[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float factor = inverse[i % 2];
        fragment[i] = gpu::pack_bf16(factor * rows_.result[8 * k + 2 * i],
                                     factor * rows_.result[8 * k + 2 * i + 1]);
      }
      const int column = k * 16 % kHalfWidth + lane / 16 * 8;
      const int half_bytes = k * 16 / kHalfWidth * Tile<kConsumerQueries>::kHalfBytes;
      const std::uint32_t place =
          swizzled(static_cast<std::uint32_t>(row * kRowBytes + column * 2), Swizzle::bytes_128);
      gpu::store_matrix_x4(bytes + half_bytes + place, fragment);
    }
    gpu::fence_proxy_async();
    gpu::sync_named(kStore + consumer_, kWarpgroup);  // the tile is written
    if (is_storing()) {
      gpu::tma_store(maps_.out, &tile, 0, first_query, 0, head.n, head.b);
      gpu::tma_commit();
    }
  }

  const AttentionArguments<bf16>& arguments_;
  const ForwardMaps& maps_;
  Shared& shared_;
  int consumer_;
  float slope_;
  std::uint64_t query_;  // left operand of scores: this consumer's rows
  std::uint64_t key_;    // right operand of scores, of stage 0
  std::uint64_t value_;  // right operand of results, of stage 0
  unsigned query_parity_ = 0;
  Place place_;  // of the next tile
  SoftmaxRows<kCapped> rows_;
};

// grid: one block an SM, block: kThreads, shared: Shared; requires H == 128, queries and keys.
template <bool kCapped>
__global__ void __launch_bounds__(kThreads, 1)
    attention_forward_hopper_kernel(const __grid_constant__ ForwardMaps maps,
                                    const __grid_constant__ AttentionArguments<bf16> arguments) {
  Shared& shared = *gpu::dynamic_shared_for_tma<Shared>();
  if (threadIdx.x == 0) {
    gpu::mbarrier_init(&shared.query_full, 1);
    gpu::mbarrier_init(&shared.query_empty, kReaders);
    for (int stage = 0; stage < kStages; ++stage) {
      gpu::mbarrier_init(&shared.key_full[stage], 1);
      gpu::mbarrier_init(&shared.key_empty[stage], kReaders);
      gpu::mbarrier_init(&shared.value_full[stage], 1);
      gpu::mbarrier_init(&shared.value_empty[stage], kReaders);
    }
    gpu::fence_mbarrier_init();
  }
  gpu::sync_threads();  // the mbarriers are there

  if (threadIdx.x < kWarpgroup) {
    gpu::decrease_max_registers<kProducerRegisters>();
    if (gpu::warp_id() == 0 && gpu::elect_one()) {
      produce(arguments, maps, shared);
    }
  } else {
    gpu::increase_max_registers<kConsumerRegisters>();
    Consumer<kCapped>(arguments, maps, shared).run();
  }
}

}  // namespace

bool hopper_takes_attention(const AttentionShape& shape) {
  constexpr std::int64_t kMaxItems = std::int64_t{1} << 30;
  return shape.H == kHopperWidth && shape.num_keys > 0 &&
         shape.B * shape.N * ceil_div(shape.S, kQueries) < kMaxItems &&
         this_device().compute_capability == 90;
}

void launch_attention_forward_hopper(const AttentionArguments<bf16>& arguments, Stream stream) {
  const AttentionShape& shape = arguments.shape;
  const ForwardMaps maps = {
      .query = tile_map(arguments.query, shape.B, shape.S, shape.N, kQueries),
      .key = tile_map(arguments.key, shape.B, shape.num_keys, shape.G, kKeys),
      .value = tile_map(arguments.value, shape.B, shape.num_keys, shape.G, kKeys),
      .out = tile_map(
          {arguments.out, shape.N * kHopperWidth}, shape.B, shape.S, shape.N, kConsumerQueries)};
  const std::int64_t items = shape.B * shape.N * ceil_div(shape.S, kQueries);
  const Launch launched = {.grid = {.x = std::min(items, free_multiprocessors(stream))},
                           .block = {.x = kThreads},
                           .shared_bytes = sizeof(Shared),
                           .stream = stream};
  if (arguments.cap > 0.0F) {
    launch(attention_forward_hopper_kernel<true>, launched, maps, arguments);
  } else {
    launch(attention_forward_hopper_kernel<false>, launched, maps, arguments);
  }
}

}  // namespace memphis::kernels::cuda
