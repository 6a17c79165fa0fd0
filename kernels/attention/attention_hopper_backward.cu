// SPDX-License-Identifier: Apache-2.0
//
// Attention of bf16 heads 128 wide on sm_90a, backward: one kernel forms all five products, so that
// none is formed twice.
//
// Items. Blocks take items by ticket: a tile of 128 keys, against tiles of 64 queries of the heads
// of its group, a step each. An item waits for lower tickets only, see hopper_key_tile.
//
// Warpgroups. Of the first, one thread takes tickets and fetches by TMA, keys and values for an
// item, queries and dout in two stages, and another adds up dq. Two consume: they have 64 of the
// keys each, whose gradients stay in registers. Scores are transposed, keys by queries, so that
// each is of the warpgroup that owns the key. Probabilities and gradients of scores go to shared
// memory, left operands of dv = p^T dout and dk = ds^T q; of dq = ds k, which is over the keys of
// both, each warpgroup forms half of the columns.
//
// Order. dq is summed in f32 in global memory, by bulk reductions that wait for those of all tiles
// of keys before: the first stores, nothing is zeroed, and bits do not depend on who is faster.
// Where a tile of keys is cut in slices, these add up dk and dv one after the other.
//
// Bound by shared memory, as products of 64 rows are: wgmma reads 288 KiB of operands a step, and
// 129 KiB of tiles, probabilities, gradients and dq come and go, 3336 cycles at 128 bytes each. The
// tensor cores are busy for 2560 of them, and with a cap the special-function unit for 1152: two
// exponentials and a quarter of a reciprocal a score. Not measured.
//
// Source: Dao 2023, arXiv:2307.08691, algorithm 2; Shah et al. 2024, arXiv:2407.08608.
#include "kernels/attention/attention_hopper_backward.h"

#include <algorithm>
#include <cmath>

#include <gpu_hopper_barrier.h>
#include <gpu_hopper_bulk.h>
#include <gpu_hopper_tma.h>
#include <gpu_hopper_wgmma.h>
#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_mma.h>
#include <gpu_warp.h>

#include "kernels/attention/attention_hopper_backward_workspace.h"
#include "kernels/attention/attention_hopper_tile.h"
#include "kernels/device/soft_cap.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kStages = Place::kStages;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kReaders = kConsumers * kWarpsOfGroup;  // warps, each of which gives a stage back

// A thread has 168 registers at the launch. A consumer holds 128 sums, 32 scores, and 32
// gradients of probabilities or of queries.
constexpr int kProducerRegisters = 24;
constexpr int kConsumerRegisters = 240;
static_assert(registers_suffice(kProducerRegisters, kConsumers, kConsumerRegisters));

// Named barriers; 0 is the block's.
constexpr int kScores = 1;  // all gradients of scores are in shared memory
constexpr int kOwn = 2;     // + consumer: of its own threads

struct BackwardMaps {
  TensorMap query;
  TensorMap dout;
  TensorMap key;
  TensorMap value;
};

// Flags of a step.
constexpr unsigned kMaskedStep = 1;  // some query of the tile does not see some key of the item's
constexpr unsigned kLastStep = 2;    // of its item

// 212 KiB. Who writes a buffer, who reads it, and what is between them:
//
//   buffer           written by               read by          full, arrivals    empty, arrivals
//   ticket[s]        load, a ticket           all              ticket_full, 1    ticket_empty, 9
//   key, value and
//     first_query    TMA, an item             consumers        keys_full, 1      keys_empty, 8
//   query[s], rows[s]
//     and step[s]    TMA and load, a step     consumers        query_full, 1     query_empty, 8
//   dout[s]          TMA, a step              consumers        dout_full, 1      query_empty
//   probability      the warp, a step         the same warp    kOwn + consumer   its wait for dv
//   dscore[s]        both consumers, a step   both consumers   kScores           kScores, a step on
//   dquery[c]        consumer c, a step       add_up           dquery_full, 4    dquery_empty, 1
//
// 8 are the warps of the consumers, 9 those and add_up, 4 the warps of one consumer; 1 is the one
// thread of load (with the bytes that it expects) or of add_up. kOwn + consumer is of 128 threads,
// kScores of 256. Rings of tickets and of steps are counted apart, see hopper_ring.h.
// Of a left operand a warp of a wgmma reads the 16 rows that its part of the result has: of
// probabilities those that it wrote itself, so that its own wait frees them. So it is with dk's
// gradients of scores; but dq's rows are queries, and for it each warp reads what all have written.
struct alignas(1024) Shared {
  Tile<kKeys> key;                          // 32 KiB
  Tile<kKeys> value;                        // 32 KiB
  Tile<kQueries> query[kStages];            // 2 x 16 KiB
  Tile<kQueries> dout[kStages];             // 2 x 16 KiB
  bf16 probability[kKeys][kQueries];        // 16 KiB; transposed, rows of 128 bytes, swizzled
  bf16 dscore[kStages][kKeys][kQueries];    // 2 x 16 KiB, the same
  float dquery[kConsumers][kConsumerPart];  // 2 x 16 KiB, in the order of accumulators
  QueryRows rows[kStages];
  int first_query[kKeys];  // that sees a key
  struct {
    int first_query;
    int first_key;
    unsigned flags;
  } step[kStages];
  int ticket[kStages];
  gpu::Mbarrier ticket_full[kStages];
  gpu::Mbarrier ticket_empty[kStages];
  gpu::Mbarrier keys_full;
  gpu::Mbarrier keys_empty;
  gpu::Mbarrier query_full[kStages];
  gpu::Mbarrier query_empty[kStages];
  gpu::Mbarrier dout_full[kStages];
  gpu::Mbarrier dquery_full[kConsumers];
  gpu::Mbarrier dquery_empty[kConsumers];
};
static_assert(kQueries * sizeof(bf16) == kRowBytes);
static_assert(kStages == 2, "dscore is read for one step more; dquery's parity is the stage");

// In 32 bits: 64 take a call to divide.
__device__ __forceinline__ int heads_of_group(const BackwardArguments& arguments) {
  const AttentionShape& shape = arguments.attention.shape;
  return static_cast<int>(shape.N) / static_cast<int>(shape.G);
}

// What a ticket stands for. Steps go through the heads of the group, and through the tiles of
// queries of each.
struct Item {
  int b;
  int g;
  int tile;  // of keys
  int slice;
  int first_tile;
  int num_tiles;
  int all_query;
  int first_step;
  int end_step;

  __device__ __forceinline__ Item(const BackwardArguments& arguments, int ticket) {
    const AttentionShape& shape = arguments.attention.shape;
    const HopperBackwardPlan& plan = arguments.plan;
    const auto G = static_cast<int>(shape.G);
    const int heads = static_cast<int>(shape.B) * G;
    tile = hopper_key_tile(ticket / (heads * plan.num_slices), plan.band, plan.num_key_tiles);
    slice = ticket / heads % plan.num_slices;
    b = ticket % heads / G;
    g = ticket % heads % G;
    const KeyTile& keys = arguments.workspace.key_tile[b * plan.num_key_tiles + tile];
    first_tile = keys.first_tile;
    num_tiles = keys.num_tiles;
    all_query = keys.all_query;
    const int num_steps = heads_of_group(arguments) * num_tiles;
    first_step = num_steps * slice / plan.num_slices;
    end_step = num_steps * (slice + 1) / plan.num_slices;
  }
  __device__ __forceinline__ bool has_steps() const { return first_step < end_step; }
};

// The step that an item is at.
struct Step {
  int n;     // head
  int tile;  // of queries

  __device__ __forceinline__ Step(const BackwardArguments& arguments, const Item& item)
      : n(item.g * heads_of_group(arguments) + item.first_step / item.num_tiles),
        tile(item.first_tile + item.first_step % item.num_tiles) {}
  __device__ __forceinline__ void advance(const Item& item) {
    if (++tile == item.first_tile + item.num_tiles) {
      tile = item.first_tile;
      ++n;
    }
  }
};

// The number of a step's tile of queries among those of all sequences and heads. In 32 bits: the
// threads that call it have 24 registers.
__device__ __forceinline__ int query_tile(const BackwardArguments& arguments,
                                          const Item& item,
                                          const Step& step) {
  return (item.b * static_cast<int>(arguments.attention.shape.N) + step.n) *
             arguments.plan.num_query_tiles +
         step.tile;
}

// One thread: takes tickets, and fetches what they stand for.
__device__ __forceinline__ void load(const BackwardArguments& arguments,
                                     const BackwardMaps& maps,
                                     Shared& shared) {
  gpu::tma_prefetch_descriptor(maps.query);
  gpu::tma_prefetch_descriptor(maps.dout);
  gpu::tma_prefetch_descriptor(maps.key);
  gpu::tma_prefetch_descriptor(maps.value);
  Place tickets;
  Place place;
  for (;; tickets.advance()) {
    gpu::mbarrier_wait(&shared.ticket_empty[tickets.stage()], tickets.parity() ^ 1U);
    const int ticket = gpu::fetch_add(arguments.workspace.ticket, 1);
    shared.ticket[tickets.stage()] = ticket;
    gpu::mbarrier_arrive(&shared.ticket_full[tickets.stage()]);
    if (ticket >= arguments.plan.num_items) {
      return;
    }
    const Item item(arguments, ticket);
    gpu::mbarrier_wait(&shared.keys_empty, tickets.parity_of_one() ^ 1U);
    gpu::mbarrier_arrive_expect(
        &shared.keys_full, static_cast<int>(2 * sizeof(Tile<kKeys>) + sizeof(shared.first_query)));
    gpu::tma_load(
        &shared.key, maps.key, &shared.keys_full, 0, item.tile * kKeys, 0, item.g, item.b);
    gpu::tma_load(
        &shared.value, maps.value, &shared.keys_full, 0, item.tile * kKeys, 0, item.g, item.b);
    gpu::bulk_load(&shared.first_query,
                   arguments.workspace.first_query +
                       (item.b * arguments.plan.num_key_tiles + item.tile) * kKeys,
                   static_cast<int>(sizeof(shared.first_query)),
                   &shared.keys_full);
    if (!item.has_steps()) {
      continue;
    }
    Step step(arguments, item);
    for (int i = item.first_step; i < item.end_step; ++i) {
      const int stage = place.stage();
      const int row = step.tile * kQueries;
      gpu::Mbarrier* const query_full = &shared.query_full[stage];
      const Seen& seen =
          arguments.workspace.seen[item.b * arguments.plan.num_query_tiles + step.tile];
      const bool is_masked = row < item.all_query || seen.oldest_key > item.tile * kKeys;
      const bool is_last = i == item.end_step - 1;
      gpu::mbarrier_wait(&shared.query_empty[stage], place.parity() ^ 1U);
      shared.step[stage] = {.first_query = row,
                            .first_key = item.tile * kKeys,
                            .flags = (is_masked ? kMaskedStep : 0U) | (is_last ? kLastStep : 0U)};
      gpu::mbarrier_arrive_expect(query_full,
                                  static_cast<int>(sizeof(Tile<kQueries>) + sizeof(QueryRows)));
      gpu::tma_load(&shared.query[stage], maps.query, query_full, 0, row, 0, step.n, item.b);
      gpu::bulk_load(&shared.rows[stage],
                     arguments.workspace.rows + query_tile(arguments, item, step),
                     static_cast<int>(sizeof(QueryRows)),
                     query_full);
      gpu::Mbarrier* const dout_full = &shared.dout_full[stage];
      gpu::mbarrier_arrive_expect(dout_full, static_cast<int>(sizeof(Tile<kQueries>)));
      gpu::tma_load(&shared.dout[stage], maps.dout, dout_full, 0, row, 0, step.n, item.b);
      place.advance();
      step.advance(item);
    }
  }
}

// One thread: adds the items' parts of dq in their order.
__device__ __forceinline__ void add_up(const BackwardArguments& arguments, Shared& shared) {
  constexpr int kPartBytes = kConsumerPart * static_cast<int>(sizeof(float));
  const Workspace& workspace = arguments.workspace;
  unsigned parity = 0;
  for (Place tickets;; tickets.advance()) {
    gpu::mbarrier_wait(&shared.ticket_full[tickets.stage()], tickets.parity());
    const int ticket = shared.ticket[tickets.stage()];
    gpu::mbarrier_arrive(&shared.ticket_empty[tickets.stage()]);
    if (ticket >= arguments.plan.num_items) {
      return;
    }
    const Item item(arguments, ticket);
    if (!item.has_steps()) {
      continue;
    }
    Step step(arguments, item);
    for (int i = item.first_step; i < item.end_step; ++i) {
      const int tile = query_tile(arguments, item, step);
      const Seen seen = workspace.seen[item.b * arguments.plan.num_query_tiles + step.tile];
      const int before =
          hopper_key_tiles_before(item.tile, seen.first_tile, seen.last_tile, arguments.plan.band);
      float* const sum = workspace.dquery + std::int64_t{tile} * kTileOfQueries;
      if (before > 0) {
        gpu::wait_at_least(workspace.query_turn + tile, before);
        gpu::fence_proxy_async_global();  // reductions come after those that were waited for
      }
      for (int consumer = 0; consumer < kConsumers; ++consumer) {
        const float* const part = shared.dquery[consumer];
        gpu::mbarrier_wait(&shared.dquery_full[consumer], parity);
        if (before > 0) {
          gpu::bulk_reduce_add(sum + consumer * kConsumerPart, part, kPartBytes);
        } else {
          gpu::bulk_store(sum + consumer * kConsumerPart, part, kPartBytes);
        }
      }
      gpu::tma_commit();
      gpu::tma_wait_read<0>();
      for (gpu::Mbarrier& empty : shared.dquery_empty) {
        gpu::mbarrier_arrive(&empty);
      }
      gpu::tma_wait<0>();  // the sums are there: whoever is next may add to them
      gpu::store_release(workspace.query_turn + tile, before + 1);
      parity ^= 1U;
      step.advance(item);
    }
  }
}

// A consumer warpgroup. Thread t has of its 64 keys those of two rows (see gpu::wgmma), with
// i / 2 % 2 the row of element i.
template <bool kCapped>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(const BackwardArguments& arguments, Shared& shared)
      : arguments_(arguments),
        shared_(shared),
        consumer_(consumer_index()),
        key_(rows_descriptor(&shared.key.half[0][consumer_ * kConsumerKeys], kLeadingUnused)),
        value_(rows_descriptor(&shared.value.half[0][consumer_ * kConsumerKeys], kLeadingUnused)),
        key_columns_(rows_descriptor(&shared.key.half[consumer_], Tile<kKeys>::kHalfBytes)),
        query_(rows_descriptor(&shared.query, Tile<kQueries>::kHalfBytes)),
        dout_(rows_descriptor(&shared.dout, Tile<kQueries>::kHalfBytes)),
        probability_(
            rows_descriptor(&shared.probability[consumer_ * kConsumerKeys], kLeadingUnused)),
        dscore_(rows_descriptor(&shared.dscore, kLeadingUnused)) {}

  __device__ __forceinline__ void run() {
    for (Place tickets;; tickets.advance()) {
      gpu::mbarrier_wait(&shared_.ticket_full[tickets.stage()], tickets.parity());
      const int& ticket = shared_.ticket[tickets.stage()];  // read at each use, as Item is below
      if (gpu::shuffle_from(ticket, 0) >= arguments_.plan.num_items) {
        return;
      }
      form_sums(Item(arguments_, ticket), tickets);
      finish(Item(arguments_, ticket));  // formed again: there are no registers for it meanwhile
      gpu::sync_warp();                  // all lanes have read the ticket
      release(&shared_.ticket_empty[tickets.stage()]);
    }
  }

 private:
  __device__ __forceinline__ void form_sums(const Item& item, const Place& tickets) {
#pragma unroll
    for (int i = 0; i < kSumsOfThread; ++i) {
      dkey_[i] = 0.0F;
      dvalue_[i] = 0.0F;
    }
    // Not summed up, but inputs of the first wgmma all the same: they may not be undefined.
#pragma unroll
    for (int i = 0; i < kScoresOfThread; ++i) {
      score_[i] = 0.0F;
      gradient_[i] = 0.0F;
    }
    gpu::mbarrier_wait(&shared_.keys_full, tickets.parity_of_one());
    if (gpu::shuffle_from(item.has_steps() ? 1 : 0, 0) != 0) {
      take_steps();
    }
    release(&shared_.keys_empty);
  }

  __device__ __forceinline__ void take_steps() {
    gpu::mbarrier_wait(&shared_.query_full[place_.stage()], place_.parity());
    gpu::wgmma_fence(score_);
    issue_scores(place_.stage());
    gpu::wgmma_wait<0>(score_);
    for (bool is_last = false; !is_last;) {
      // Known to be the same in all lanes: products may run from one step to the next.
      const unsigned flags = gpu::shuffle_from(shared_.step[place_.stage()].flags, 0);
      is_last = (flags & kLastStep) != 0;
      if ((flags & kMaskedStep) != 0) {
        take_step<true>(is_last);
      } else {
        take_step<false>(is_last);
      }
    }
  }

  // s = k q^T, p = e^(logit of s - lse), dp = v dout^T and ds = p (dp - delta) dlogit/ds, of this
  // consumer's 64 keys by 64 queries. s is there at the start, and the next step's at the end.
  //
  //   tensor cores                       meanwhile
  //   dp                                 p of s, to shared memory
  //   dv += p^T dout, s of the next      ds of p and dp, to shared memory
  //   (both consumers' ds are there)
  //   dq = ds k                          nothing
  //   dk += ds^T q                       dq to shared memory, for add_up
  template <bool kMasked>
  __device__ __forceinline__ void take_step(bool is_last) {
    const Place place = place_;
    const std::uint32_t seen = kMasked ? seen_scores(place.stage()) : 0;
    gpu::mbarrier_wait(&shared_.dout_full[place.stage()], place.parity());
    gpu::wgmma_fence(gradient_);
    issue_dprobabilities(place.stage());
    score_to_probability<kMasked>(place.stage(), seen);
    gpu::sync_named(kOwn + consumer_, kWarpgroup);  // probabilities are written
    gpu::wgmma_wait<0>(gradient_);

    gpu::wgmma_fence(dvalue_);
    issue_dvalues(place.stage());
    form_dscores(place.stage());
    place_.advance_uniformly();
    if (!is_last) {
      gpu::mbarrier_wait(&shared_.query_full[place_.stage()], place_.parity());
      gpu::wgmma_fence(score_);
      issue_scores(place_.stage());
    }
    // Both consumers' gradients of scores are there. They lie in two stages: before a consumer
    // writes this one again it passes the next step's barrier, to which the other comes when its
    // products of this step are done. All have read rows[stage] too, which is released below.
    gpu::sync_named(kScores, kConsumers * kWarpgroup);
    gpu::wgmma_fence(dkey_, gradient_);
    issue_dqueries(place.stage());
    issue_dkeys(place.stage());
    // All but dk's product, which runs while dq is written, are done: dv's, whose probabilities the
    // next step overwrites, and the next scores.
    gpu::wgmma_wait<1>(dvalue_, gradient_, score_);
    hand_on_dqueries(place.stage());
    gpu::wgmma_wait<0>(dkey_);
    release(&shared_.query_empty[place.stage()]);
  }

  // ---- products

  // [64 keys, 64 queries] = k q^T
  __device__ __forceinline__ void issue_scores(int stage) {
    issue_transposed(score_, key_, advance(query_, stage * kTileBytes));
  }
  // [64 keys, 64 queries] = v dout^T
  __device__ __forceinline__ void issue_dprobabilities(int stage) {
    issue_transposed(gradient_, value_, advance(dout_, stage * kTileBytes));
  }
  static __device__ __forceinline__ void issue_transposed(float (&d)[kScoresOfThread],
                                                          std::uint64_t keys,
                                                          std::uint64_t queries) {
#pragma unroll
    for (int k = 0; k < kHopperWidth; k += 16) {
      const int half = k / kHalfWidth;
      const int bytes = k % kHalfWidth * 2;
      gpu::wgmma<Major::k, Major::k>(d,
                                     advance(keys, half * Tile<kKeys>::kHalfBytes + bytes),
                                     advance(queries, half * Tile<kQueries>::kHalfBytes + bytes),
                                     k != 0);
    }
    gpu::wgmma_commit();
  }
  // [64 keys, 128] += p^T dout
  __device__ __forceinline__ void issue_dvalues(int stage) {
    issue_sums(dvalue_, probability_, advance(dout_, stage * kTileBytes));
  }
  // [64 keys, 128] += ds^T q
  __device__ __forceinline__ void issue_dkeys(int stage) {
    issue_sums(dkey_,
               advance(dscore_, stage * kScoreBytes + consumer_ * kConsumerKeys * kRowBytes),
               advance(query_, stage * kTileBytes));
  }
  static __device__ __forceinline__ void issue_sums(float (&d)[kSumsOfThread],
                                                    std::uint64_t left,
                                                    std::uint64_t queries) {
#pragma unroll
    for (int k = 0; k < kQueries; k += 16) {
      gpu::wgmma<Major::k, Major::mn>(
          d, advance(left, k * 2), advance(queries, k * kRowBytes), true);
    }
    gpu::wgmma_commit();
  }
  // [64 queries, 64 columns of this consumer's] = ds k, over the keys of both
  __device__ __forceinline__ void issue_dqueries(int stage) {
    const std::uint64_t dscore = advance(dscore_, stage * kScoreBytes);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      gpu::wgmma<Major::mn, Major::mn>(gradient_,
                                       advance(dscore, k * 16 * kRowBytes),
                                       advance(key_columns_, k * 16 * kRowBytes),
                                       k != 0);
    }
    gpu::wgmma_commit();
  }

  // ---- between the products

  // Which of the thread's scores are of a query that sees the key, as bits.
  __device__ __forceinline__ std::uint32_t seen_scores(int stage) const {
    const QueryRows& rows = shared_.rows[stage];
    const int lane_column = gpu::lane_id() % 4 * 2;
    const int first_key = shared_.step[stage].first_key + consumer_ * kConsumerKeys + row(0);
    int after_first[2];  // the lane's first query, after the first that sees its row's key
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      after_first[half] = shared_.step[stage].first_query + lane_column -
                          shared_.first_query[consumer_ * kConsumerKeys + row(half)];
    }
    std::uint32_t bits = 0;
    static_assert(kScoresOfThread == 32);
#pragma unroll
    for (int i = 0; i < kScoresOfThread; ++i) {
      const int column = i / 4 * 8 + i % 2;
      const int half = i / 2 % 2;
      const bool seen = (after_first[half] + column >= 0) &
                        (first_key + half * 8 >= rows.first_key[lane_column + column]);
      bits |= std::uint32_t{seen} << static_cast<unsigned>(i);
    }
    return gpu::opaque(bits);
  }

  // Scores become p v', without the slope of the query; probabilities go to shared memory. The
  // cap's exponent is read there for four scores at a time, behind a barrier that loads do not
  // pass: with it at hand the compiler begins the exponentials of all 32, for which there are no
  // registers. The special-function unit is busy with four of each of two warps.
  template <bool kMasked>
  __device__ __forceinline__ void score_to_probability(int stage, std::uint32_t seen) {
    const QueryRows& rows = shared_.rows[stage];
    const int lane_column = gpu::lane_id() % 4 * 2;
    store_scores(shared_.probability, [&](int i, float(&p)[4]) {
      const int column = lane_column + i / 4 * 8;
      if constexpr (kCapped) {
        gpu::sync_warp();  // four at a time
      }
      const float exponent = rows.exponent;
      float v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        v[j] = kCapped ? exponent * score_[i + j] : score_[i + j];
      }
      if constexpr (kCapped) {
        gpu::soft_cap_tails(v);
      }
      const Quad logit = gpu::load_vector(&rows.logit[column].factor);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        p[j] = gpu::exp2_approx(fmaf(v[j], logit.values[j % 2 * 2], logit.values[j % 2 * 2 + 1]));
        if constexpr (kMasked) {
          p[j] = (seen >> static_cast<unsigned>(i + j) & 1U) != 0 ? p[j] : 0.0F;
        }
        score_[i + j] = kCapped ? p[j] * fmaf(-v[j], v[j], v[j]) : p[j];
      }
    });
  }

  __device__ __forceinline__ void form_dscores(int stage) {
    const QueryRows& rows = shared_.rows[stage];
    store_scores(shared_.dscore[stage], [&](int i, float(&ds)[4]) {
      const Quad factor =
          gpu::load_vector(&rows.gradient[gpu::lane_id() % 4 * 2 + i / 4 * 8].slope);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        ds[j] = score_[i + j] *
                fmaf(gradient_[i + j], factor.values[j % 2 * 2], factor.values[j % 2 * 2 + 1]);
      }
    });
  }

  // What form(i, four) makes of elements i and the next three of scores, to a tile in shared
  // memory. As operands in registers they would take 16 more than there are.
  template <class Form>
  __device__ __forceinline__ void store_scores(bf16 (&tile)[kKeys][kQueries], const Form& form) {
    // Each lane gives the address of one row of one of the 8x8 matrices of 16 columns: rows 0-7 and
    // 8-15 of columns 0-7, then both of columns 8-15. Further columns change bits 5 and 6 alone,
    // under the swizzle too.
    const int lane = gpu::lane_id();
    const int row = consumer_ * kConsumerKeys + gpu::warp_id() % kWarpsOfGroup * 16 + lane % 16;
    const std::uint32_t place =
        swizzled(static_cast<std::uint32_t>(row * kRowBytes + lane / 16 * 16), Swizzle::bytes_128);
#pragma unroll
    for (int k = 0; k < kQueries / 16; ++k) {
      std::uint32_t fragment[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float four[4];
        form(k * 8 + i * 4, four);
        fragment[i * 2] = gpu::pack_bf16(four[0], four[1]);
        fragment[i * 2 + 1] = gpu::pack_bf16(four[2], four[3]);
      }
      gpu::store_matrix_x4(
          reinterpret_cast<unsigned char*>(&tile) + (place ^ static_cast<std::uint32_t>(k * 32)),
          fragment);
    }
    gpu::fence_proxy_async();
  }

  __device__ __forceinline__ void hand_on_dqueries(int stage) {
    // There is one stage of them, whose parity turns with each step, as the stage of two does.
    const unsigned parity = static_cast<unsigned>(stage);
    gpu::mbarrier_wait(&shared_.dquery_empty[consumer_], parity ^ 1U);
    float* const own = shared_.dquery[consumer_] + threadIdx.x % kWarpgroup * 4;
#pragma unroll
    for (int i = 0; i < kScoresOfThread; i += 4) {
      gpu::store_vector(own + i * kWarpgroup,
                        Quad{{gradient_[i], gradient_[i + 1], gradient_[i + 2], gradient_[i + 3]}});
    }
    gpu::fence_proxy_async();
    gpu::sync_warp();  // the warp's part is written
    release(&shared_.dquery_full[consumer_]);
  }

  // ---- dk and dv

  // The last slice has the sums of all, and writes them.
  __device__ __forceinline__ void finish(const Item& item) {
    const int num_slices = arguments_.plan.num_slices;
    if (num_slices > 1) {
      const std::int64_t part =
          ((item.b * arguments_.attention.shape.G + item.g) * arguments_.plan.num_key_tiles +
           item.tile) *
              kConsumers +
          consumer_;
      int* const turn = arguments_.workspace.key_turn + part;
      float* const sums = arguments_.workspace.sums + part * 2 * kSumsOfThread * kWarpgroup +
                          threadIdx.x % kWarpgroup * 4;
      const bool is_first_thread = threadIdx.x % kWarpgroup == 0;
      if (item.slice > 0) {
        if (is_first_thread) {
          gpu::wait_at_least(turn, item.slice);
        }
        gpu::sync_named(kOwn + consumer_, kWarpgroup);  // all see what was waited for
        for_each_sum([&](int i, float* four) {
          const Quad before = gpu::load_vector(sums + i * kWarpgroup);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            four[j] = before.values[j] + four[j];
          }
        });
      }
      if (item.slice < num_slices - 1) {
        for_each_sum([&](int i, const float* four) {
          gpu::store_vector(sums + i * kWarpgroup, Quad{{four[0], four[1], four[2], four[3]}});
        });
        gpu::sync_named(kOwn + consumer_, kWarpgroup);  // all sums are written
        if (is_first_thread) {
          gpu::store_release(turn, item.slice + 1);
        }
        return;
      }
    }
    store_keys(arguments_.attention.dkey, dkey_, item);
    store_keys(arguments_.attention.dvalue, dvalue_, item);
  }

  template <class Visit>
  __device__ __forceinline__ void for_each_sum(const Visit& visit) {
#pragma unroll
    for (int i = 0; i < kSumsOfThread; i += 4) {
      visit(i, dkey_ + i);
      visit(kSumsOfThread + i, dvalue_ + i);
    }
  }

  __device__ __forceinline__ void store_keys(const HeadRows<bf16>& heads,
                                             const float (&sum)[kSumsOfThread],
                                             const Item& item) const {
    const auto num_keys = static_cast<int>(arguments_.attention.shape.num_keys);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int s = item.tile * kKeys + consumer_ * kConsumerKeys + row(half);
      if (s < num_keys) {
        bf16* const to = heads.data + (std::int64_t{item.b} * num_keys + s) * heads.stride +
                         item.g * kHopperWidth + gpu::lane_id() % 4 * 2;
#pragma unroll
        for (int i = 0; i < kSumsOfThread; i += 4) {
          *reinterpret_cast<std::uint32_t*>(to + i * 2) =
              gpu::pack_bf16(sum[i + 2 * half], sum[i + 2 * half + 1]);
        }
      }
    }
  }

  // Of this consumer's keys.
  static __device__ __forceinline__ int row(int half) {
    return gpu::warp_id() % kWarpsOfGroup * 16 + gpu::lane_id() / 4 + half * 8;
  }

  static constexpr int kTileBytes = static_cast<int>(sizeof(Tile<kQueries>));
  static constexpr int kScoreBytes = kKeys * kRowBytes;

  const BackwardArguments& arguments_;
  Shared& shared_;
  int consumer_;
  // Operands of products; what has stages, of stage 0.
  std::uint64_t key_;          // left of s: this consumer's rows
  std::uint64_t value_;        // left of dp: the same
  std::uint64_t key_columns_;  // right of dq: all rows, this consumer's 64 columns
  std::uint64_t query_;        // right of s, and of dk with its rows as k
  std::uint64_t dout_;         // right of dp, and of dv with its rows as k
  std::uint64_t probability_;  // left of dv: this consumer's rows
  std::uint64_t dscore_;       // left of dk, from this consumer's rows on, and of dq with rows as k
  Place place_;                // of the step
  float dkey_[kSumsOfThread];
  float dvalue_[kSumsOfThread];
  float score_[kScoresOfThread];
  float gradient_[kScoresOfThread];  // of probabilities, then of queries
};

// grid: one block an SM, block: kThreads, shared: Shared; requires H == 128, a query and a key in
// each sequence, and what attention_backward_prepare_kernel computes.
template <bool kCapped>
__global__ void __launch_bounds__(kThreads, 1)
    attention_backward_hopper_kernel(const __grid_constant__ BackwardMaps maps,
                                     const __grid_constant__ BackwardArguments arguments) {
  Shared& shared = *gpu::dynamic_shared_for_tma<Shared>();
  if (threadIdx.x == 0) {
    gpu::mbarrier_init(&shared.keys_full, 1);
    gpu::mbarrier_init(&shared.keys_empty, kReaders);
    for (int stage = 0; stage < kStages; ++stage) {
      gpu::mbarrier_init(&shared.ticket_full[stage], 1);
      gpu::mbarrier_init(&shared.ticket_empty[stage], kReaders + 1);
      gpu::mbarrier_init(&shared.query_full[stage], 1);
      gpu::mbarrier_init(&shared.query_empty[stage], kReaders);
      gpu::mbarrier_init(&shared.dout_full[stage], 1);
    }
    for (int consumer = 0; consumer < kConsumers; ++consumer) {
      gpu::mbarrier_init(&shared.dquery_full[consumer], kWarpsOfGroup);
      gpu::mbarrier_init(&shared.dquery_empty[consumer], 1);
    }
    gpu::fence_mbarrier_init();
  }
  gpu::sync_threads();  // the mbarriers are there

  if (threadIdx.x < kWarpgroup) {
    gpu::decrease_max_registers<kProducerRegisters>();
    if (gpu::warp_id() == 0 && gpu::elect_one()) {
      load(arguments, maps, shared);
    } else if (gpu::warp_id() == 1 && gpu::elect_one()) {
      add_up(arguments, shared);
    }
  } else {
    gpu::increase_max_registers<kConsumerRegisters>();
    Consumer<kCapped>(arguments, shared).run();
  }
}

template <bool kCapped>
void launch_main(const BackwardArguments& arguments, const BackwardMaps& maps, Stream stream) {
  launch(attention_backward_hopper_kernel<kCapped>,
         {.grid = {.x = std::min(arguments.plan.num_items, this_device().num_multiprocessors)},
          .block = {.x = kThreads},
          .shared_bytes = sizeof(Shared),
          .stream = stream},
         maps,
         arguments);
}

}  // namespace

std::size_t attention_backward_hopper_bytes(const AttentionShape& shape) {
  return Workspace(shape, hopper_backward_plan(shape), nullptr).bytes;
}

void launch_attention_backward_hopper(const AttentionArguments<bf16>& arguments,
                                      void* workspace,
                                      Stream stream) {
  const AttentionShape& shape = arguments.shape;
  const HopperBackwardPlan plan = hopper_backward_plan(shape);
  const BackwardMaps maps = {
      .query = tile_map(arguments.query, shape.B, shape.S, shape.N, kQueries),
      .dout =
          tile_map({arguments.dout, shape.N * kHopperWidth}, shape.B, shape.S, shape.N, kQueries),
      .key = tile_map(arguments.key, shape.B, shape.num_keys, shape.G, kKeys),
      .value = tile_map(arguments.value, shape.B, shape.num_keys, shape.G, kKeys)};
  const BackwardArguments all = {arguments, plan, Workspace(shape, plan, workspace)};
  launch_attention_backward_prepare(all, stream);
  if (arguments.cap > 0.0F) {
    launch_main<true>(all, maps, stream);
  } else {
    launch_main<false>(all, maps, stream);
  }
  launch_attention_backward_write(all, stream);
}

}  // namespace memphis::kernels::cuda
