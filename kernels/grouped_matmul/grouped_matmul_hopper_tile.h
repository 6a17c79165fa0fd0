// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include <gpu_hopper_barrier.h>
#include <gpu_hopper_cluster.h>
#include <gpu_hopper_tma.h>
#include <gpu_hopper_wgmma.h>
#include <gpu_launch.h>
#include <gpu_memory.h>
#include <gpu_mma.h>
#include <gpu_warp.h>

#include "kernels/device/hopper_ring.h"
#include "kernels/launch.h"

// The kernel of all products of experts in bf16 on sm_90a: what one reads and how its tiles end is
// its template argument, see Product below.
//
// Tiles. A block stays on its SM for the whole launch and takes tiles of 128 x 256 of c, by turns
// with the others. Which expert a tile is of, and how many rows it has, it reads from the offsets
// on the device, so that the host never waits for the counts. Tiles that would leave half of the
// SMs idle in the last round are halved, which changes no bit of a row.
//
// Warpgroups. One produces: a single thread of it finds tiles and fetches both operands by TMA, 64
// of the reduction a step. Two consume, 64 rows each, and keep 64 x 256 sums in registers: a step
// is four wgmmas, and its stage goes back when the next step's have been issued. At the end of a
// tile the producer runs ahead into the next.
//
// Clusters. Two blocks take neighbouring tiles of the same rows and walk through their steps
// together: each fetches half of these rows for both, so that 40 KiB a step come from L2 in place
// of 48. Where the tiles across are odd in number, the last one's neighbour has no columns: its
// block fetches, gives the stages back, and computes nothing.
//
//   buffer       KiB      filled, arrivals          read, arrivals
//   stage[4]     4 x 48   full, 1: this producer    empty, 16: warps of both blocks' consumers
//   tile[2]               tile_full, 1: the same    tile_empty, 8: warps of this block's
//   slot[2][2]   4 x 8    Outbox::seal, 128         Outbox::open, when TMA has read it
//
// The other block's half of the rows may come to a stage before this block's producer has arrived
// there: its bytes count at once, and the phase ends with that arrival and what it expects. It does
// not come before the stage is free here, as this block's warps are among the 16 that it waits for.
//
// Ragged rows. One map of TMA covers the rows of all experts. A tile that an expert's rows do not
// fill computes some of the next expert's, which are not stored; where the reduction goes over
// rows, those past the expert's last are cleared first.
//
// Ends of tiles. c goes through shared memory, 64 rows of 128 bytes at a time, and is stored by TMA
// while the threads go on.
//
// Source: Zhao et al. 2025, DeepGEMM (persistent grouped products with a producer by TMA); Gale et
// al. 2022, arXiv:2211.15841.
namespace memphis::kernels::cuda::grouped {

constexpr int kTileRows = 128;     // of c
constexpr int kTileColumns = 256;  // the widest wgmma: each of a's rows is read for 256 columns
constexpr int kConsumers = 2;
constexpr int kConsumerRows = kTileRows / kConsumers;
// Of the reduction, in one step: 128 bytes of bf16, a row of the widest swizzle.
constexpr int kDepth = 64;
constexpr int kMmaDepth = 16;
constexpr int kStages = 4;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kReaders = kConsumers * kWarpsOfGroup;
// Blocks that take neighbours across and fetch their rows of a for each other, half of them each:
// 40 KiB a step come from L2 in place of 48.
constexpr int kCluster = 2;
static_assert(kCluster * kConsumerRows == kTileRows, "each fetches as many rows as a consumer has");
// 132 blocks of an H100 take 16 x 8 tiles at once, 2048 rows and 2112 columns: of all groups this
// reads the fewest bytes that L2 does not already have.
constexpr int kGroupTiles = 16;

// A thread has 168 registers at the launch; a consumer holds 128 sums.
constexpr int kProducerRegisters = 40;
constexpr int kConsumerRegisters = 232;
static_assert(registers_suffice(kProducerRegisters, kConsumers, kConsumerRegisters));
constexpr int kSums = kConsumerRows * kTileColumns / kWarpgroup;

// Named barriers; 0 is the block's.
constexpr int kClear = 1;  // of both consumers
constexpr int kStore = 2;  // + consumer: of its own threads

// Operands of a step, in rows of 128 bytes under the swizzle, 64 of them to kBoxBytes:
//   Major::k    of one row of the operand the step's 64 values of k; 64 rows of the operand
//   Major::mn   of 64 rows of the operand one value of k; the step's 64 values of k
// TMA brings so much at a time, of a one from each block of the cluster; but all of b in one copy
// where k is contiguous.
constexpr int kRowBytes = 128;
constexpr int kBoxRows = 64;
constexpr int kBoxBytes = kBoxRows * kRowBytes;
struct Stage {
  bf16 a[kTileRows * kDepth];
  bf16 b[kTileColumns * kDepth];
};
// What a consumer writes at once: 64 rows of 64 bf16 or 32 f32, under the swizzle.
struct Slot {
  unsigned char bytes[kConsumerRows * kRowBytes];
};
constexpr int kSlotColumns = kRowBytes / 2;     // bf16
constexpr int kSlotColumnsF32 = kRowBytes / 4;  // f32
constexpr int kSlots = 2;

struct GroupedArguments {
  const std::int32_t* offsets_E1;
  int num_experts;
  int clusters_across;
  int columns;      // of c
  int weight_rows;  // of c where it is a weight; else 0: its rows are the experts'
  bool write;       // c is written; else, which only a weight is, added to
  int reduction;    // 0 where it goes over an expert's rows
};

// A tile of c, and the steps that it takes.
struct alignas(8) TileOfC {
  int expert = -1;   // past the last tile
  int row = 0;       // in all of c, and in the expert's weight where c is a weight
  int num_rows = 0;  // of c that are there, kTileRows at most; a consumer's: 0 or less if none is
  int column = 0;
  int reduction = 0;  // elements: of k, or rows of the expert
  int first = 0;      // of these in the operands: 0, or the expert's first row

  __device__ __forceinline__ bool exists() const { return expert >= 0; }
  __device__ __forceinline__ int num_steps() const { return (reduction + kDepth - 1) / kDepth; }
};

// Tiles that the producer has found and not both consumers have begun: a ring, as that of stages.
constexpr int kTiles = 2;

struct alignas(1024) Shared {
  Stage stage[kStages];
  Slot slot[kConsumers][kSlots];
  TileOfC tile[kTiles];
  gpu::Mbarrier full[kStages];
  gpu::Mbarrier empty[kStages];
  gpu::Mbarrier tile_full[kTiles];
  gpu::Mbarrier tile_empty[kTiles];
};

// The tiles that this block takes, expert by expert; of one expert kGroupTiles down before the next
// across. Both blocks of a cluster have the same indices, and differ in the column alone.
//
// If those that are left for the last round would leave half of the clusters idle, each goes to two
// of them, 64 rows each: those of one consumer, which fills the tensor cores alone in half of the
// time. From first_halved_ on two indices stand for a tile, and a cluster has one of them at most.
// Not so of a weight, whose consumers clear operands together.
class Tiles {
 public:
  __device__ __forceinline__ explicit Tiles(const GroupedArguments& arguments)
      : arguments_(arguments), index_(static_cast<int>(blockIdx.x) / kCluster) {
    if (arguments_.weight_rows > 0) {
      return;
    }
    int num_tiles = 0;
#pragma unroll 1
    for (int expert = 0; expert < arguments_.num_experts; ++expert) {
      num_tiles += tiles_down(arguments_.offsets_E1[expert + 1] - arguments_.offsets_E1[expert]) *
                   arguments_.clusters_across;
    }
    const int last = num_tiles % num_clusters();
    if (last * 2 <= num_clusters()) {
      first_halved_ = num_tiles - last;
    }
  }

  __device__ __forceinline__ TileOfC next() {
    const bool weights = arguments_.weight_rows > 0;
    const int halves = index_ - first_halved_;
    const bool halved = halves >= 0;
    const int tile = halved ? first_halved_ + halves / 2 : index_;
    const int first_row = halved ? halves % 2 * kConsumerRows : 0;
    const int most_rows = halved ? kConsumerRows : kTileRows;
    index_ += num_clusters();
    for (; expert_ < arguments_.num_experts; ++expert_) {
      const int first = arguments_.offsets_E1[expert_];
      const int rows = arguments_.offsets_E1[expert_ + 1] - first;
      // Nothing is added to the weight of an expert without rows: no tiles. But zeros are written.
      const bool in_c = rows > 0 || arguments_.write;
      const int c_rows = !weights ? rows : in_c ? arguments_.weight_rows : 0;
      const int down = tiles_down(c_rows);
      const int across = arguments_.clusters_across;
      const int index = tile - first_index_;
      if (index < down * across) {
        const int group = index / (kGroupTiles * across);
        const int in_group = index % (kGroupTiles * across);
        const int group_tiles = std::min(down - group * kGroupTiles, int{kGroupTiles});
        const int row = (group * kGroupTiles + in_group % group_tiles) * kTileRows + first_row;
        if (row >= c_rows) {
          break;  // a half without rows; after a half this cluster has no tile any more
        }
        return {.expert = expert_,
                .row = weights ? row : first + row,
                .num_rows = std::min(c_rows - row, most_rows),
                .column = (in_group / group_tiles * kCluster + gpu::cluster_rank()) * kTileColumns,
                .reduction = weights ? rows : arguments_.reduction,
                .first = weights ? first : 0};
      }
      first_index_ += down * across;
    }
    return {};
  }

 private:
  static __device__ __forceinline__ int num_clusters() {
    return static_cast<int>(gridDim.x) / kCluster;
  }
  static __device__ __forceinline__ int tiles_down(int rows) {
    return (rows + kTileRows - 1) / kTileRows;
  }

  const GroupedArguments& arguments_;
  int index_;
  int first_halved_ = std::numeric_limits<int>::max();
  int expert_ = 0;
  int first_index_ = 0;  // of the expert's tiles
};

// ---- what a product is
//
// The kernel's template argument: grouped_matmul_hopper.cu has two, kernels/experts two more.
//
//   Arguments         a struct: the kernel's parameter. `grouped` is a member; TMA reads maps there
//   kMajorA, kMajorB  what is contiguous in an operand: k, or its rows
//   kOverRows         the reduction goes over an expert's rows, and c is its weight
//   kLastSteps        how many further steps the ring brings to the end of a tile; may be 0
//
// Static, called by the producer's thread; what is expected of `full` must come to it:
//   fetch(arguments, stage, full, tile, reduction)
//       a step's operands from element `reduction` on: a whole Stage, half of a for both blocks
//   fetch_last(arguments, stage, full, tile, step)
//       with kLastSteps: the size of Stage::b, for this block alone
//
// Called by all 128 threads of a consumer, whose own tile.row and tile.num_rows are:
//   Product(arguments, tile)
//       while the tile's last products run: reads what its end needs of global memory
//   write(outbox, sums)
//       without kLastSteps: stores c
//   replace(stage, sums, step, consumer), then send(outbox, stage, step, consumer)
//       with kLastSteps: puts results where fetch_last's bytes are, then has them stored from there

// ---- the producer

// `rows` of an operand at a step of the reduction; of those of a weight, one expert's.
template <Major kMajor, int kRows, class... Expert>
__device__ __forceinline__ void fetch_operand(bf16* tile,
                                              const TensorMap& map,
                                              gpu::Mbarrier* full,
                                              int row,
                                              int reduction,
                                              Expert... expert) {
  if constexpr (kMajor == Major::k) {
    gpu::tma_load(tile, map, full, reduction, row, expert...);
  } else {
#pragma unroll
    for (int i = 0; i < kRows; i += kBoxRows) {
      gpu::tma_load(tile + i * kDepth, map, full, row + i, reduction, expert...);
    }
  }
}

// The tile's rows of a, of which each block of the cluster fetches its part for all.
template <Major kMajor>
__device__ __forceinline__ void fetch_a(
    Stage& stage, const TensorMap& map, gpu::Mbarrier* full, int row, int reduction) {
  static_assert(kConsumerRows == kBoxRows, "a part is a box");
  constexpr unsigned kAll = (1U << kCluster) - 1U;
  const int part = gpu::cluster_rank() * kConsumerRows;
  bf16* const to = stage.a + part * kDepth;
  if constexpr (kMajor == Major::k) {
    gpu::tma_load_to_cluster(to, map, full, kAll, reduction, row + part);
  } else {
    gpu::tma_load_to_cluster(to, map, full, kAll, row + part, reduction);
  }
}

// One thread.
template <class Product>
__device__ __forceinline__ void produce(const typename Product::Arguments& arguments,
                                        Shared& shared) {
  RingPlace<kStages> place;
  RingPlace<kTiles> turn;
  Tiles tiles(arguments.grouped);
  // To find a tile takes divisions and reads of offsets. Consumers, whose products end before they
  // ask, are told.
  const auto next = [&] {
    const TileOfC tile = tiles.next();
    gpu::mbarrier_wait(&shared.tile_empty[turn.stage()], turn.parity() ^ 1U);
    shared.tile[turn.stage()] = tile;
    gpu::mbarrier_arrive(&shared.tile_full[turn.stage()]);
    turn.advance();
    return tile;
  };
  const auto fetch = [&](int bytes, const auto& load) {
    gpu::Mbarrier* const full = &shared.full[place.stage()];
    gpu::mbarrier_wait(&shared.empty[place.stage()], place.parity() ^ 1U);
    gpu::mbarrier_arrive_expect(full, bytes);
    load(shared.stage[place.stage()], full);
    place.advance();
  };
  for (TileOfC tile = next(); tile.exists(); tile = next()) {
    for (int step = 0; step < tile.num_steps(); ++step) {
      fetch(static_cast<int>(sizeof(Stage)), [&](Stage& stage, gpu::Mbarrier* full) {
        Product::fetch(arguments, stage, full, tile, tile.first + step * kDepth);
      });
    }
    if constexpr (Product::kLastSteps > 0) {
      for (int step = 0; step < Product::kLastSteps; ++step) {
        fetch(static_cast<int>(sizeof(Stage::b)), [&](Stage& stage, gpu::Mbarrier* full) {
          Product::fetch_last(arguments, stage, full, tile, step);
        });
      }
    }
  }
}

// ---- the consumers

// Where a consumer's threads put what TMA stores for them: two slots, of which one is written while
// the other is read.
class Outbox {
 public:
  __device__ __forceinline__ Outbox(Slot (&slots)[kSlots], int consumer)
      : slots_(slots),
        barrier_(kStore + consumer),
        warp_(gpu::shuffle_from(gpu::warp_id() % kWarpsOfGroup, 0)) {}

  // All threads of the warpgroup call these: open, then seal when the slot is written, then send.
  // The next slot, which is read no more, by TMA or by threads (send_columns).
  __device__ __forceinline__ unsigned char* open() {
    static_assert(kSlots == 2);
    turn_ ^= 1;
    wait_read<kSlots - 1>();
    return slots_[turn_].bytes;
  }
  // All threads have written their part of what is to be stored.
  __device__ __forceinline__ void seal() const {
    gpu::fence_proxy_async();
    gpu::sync_named(barrier_, kWarpgroup);
  }
  // One thread calls `store`. A wait counts these calls, those too that store nothing.
  template <class Store>
  __device__ __forceinline__ void send(const Store& store) const {
    if (is_storing()) {
      store();
      gpu::tma_commit();
    }
  }
  // All but the newest `kPending` that were sent are read.
  template <int kPending>
  __device__ __forceinline__ void wait_read() const {
    if (is_storing()) {
      gpu::tma_wait_read<kPending>();
    }
    gpu::sync_named(barrier_, kWarpgroup);
  }
  __device__ __forceinline__ void close() const {
    if (is_storing()) {
      gpu::tma_wait<0>();
    }
  }

 private:
  // Always the same thread. A shuffle tells the compiler that all lanes are of one warp: after a
  // branch that might part them it forms no descriptor in uniform registers, and each step would
  // have them moved there, a word at a time.
  __device__ __forceinline__ bool is_storing() const { return warp_ == 0 && gpu::elect_one(); }

  Slot (&slots_)[kSlots];
  int barrier_;
  int warp_;  // of the warpgroup's
  int turn_ = 0;
};

// Where lane and step of 16 columns lie in a slot or a box of bf16, as ldmatrix and stmatrix take
// the four 8 x 8 matrices of 16 rows of this warp: rows 0 to 7 and 8 to 15 of columns 0 to 7, then
// of columns 8 to 15.
__device__ __forceinline__ std::uint32_t matrix_place(int step) {
  const int lane = gpu::lane_id();
  const int row = gpu::warp_id() % kWarpsOfGroup * 16 + lane % 16;
  const int column = step * 16 + lane / 16 * 8;
  return swizzled(static_cast<std::uint32_t>(row * kRowBytes + column * 2), Swizzle::bytes_128);
}

// 64 columns of bf16 of a consumer, two a register as wgmma's sums have them.
using PackedColumns = std::uint32_t[kSlotColumns / 4];

// Sums [first, first + 32) of a thread, which are two rows of 64 columns of a consumer.
__device__ __forceinline__ void pack(PackedColumns& packed, const float (&sums)[kSums], int first) {
#pragma unroll
  for (int i = 0; i < kSlotColumns / 4; ++i) {
    packed[i] = gpu::pack_bf16(sums[first + 2 * i], sums[first + 2 * i + 1]);
  }
}

// Two neighbours in a row. Register i of PackedColumns has two of row i % 2 of the thread's rows.
struct alignas(8) Pair {
  float low;
  float high;
};
// Of the thread's two rows of a tile.
__device__ __forceinline__ int row_of_thread(int half) {
  return gpu::warp_id() % kWarpsOfGroup * 16 + gpu::lane_id() / 4 + half * 8;
}

__device__ __forceinline__ void write_slot(unsigned char* slot, const PackedColumns& packed) {
#pragma unroll
  for (int step = 0; step < kSlotColumns / 16; ++step) {
    std::uint32_t fragment[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      fragment[i] = packed[4 * step + i];
    }
    gpu::store_matrix_x4(slot + matrix_place(step), fragment);
  }
}

// Rows of bf16 in global memory.
struct Rows {
  bf16* data;
  std::int64_t stride;
  int columns;
};

// 64 columns of a consumer's rows of c, which lie sealed at `written`. TMA stores them where all
// are of one expert; else what comes after the expert's last row is the next one's, which TMA
// cannot know, and threads copy them.
template <class Store>
__device__ __forceinline__ void send_columns(const Outbox& outbox,
                                             const unsigned char* written,
                                             const Rows& c,
                                             int row,
                                             int num_rows,
                                             int column,
                                             const Store& store) {
  const bool whole = num_rows >= kConsumerRows;
  outbox.send([&] {
    if (whole) {
      store(written);
    }
  });
  if (!whole) {
    constexpr int kChunks = kRowBytes / kChunkBytes;
    constexpr int kWidth = kChunkBytes / 2;
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
#pragma unroll
    for (int i = 0; i < kConsumerRows * kChunks; i += kWarpgroup) {
      const int r = (i + thread) / kChunks;
      const int chunk = (i + thread) % kChunks;
      const int to = column + chunk * kWidth;
      if (r < num_rows && to < c.columns) {
        const std::uint32_t from = swizzled(
            static_cast<std::uint32_t>(r * kRowBytes + chunk * kChunkBytes), Swizzle::bytes_128);
        gpu::store_vector(c.data + (row + r) * c.stride + to,
                          gpu::load_vector(reinterpret_cast<const bf16*>(written + from)));
      }
    }
  }
}

template <class Store>
__device__ __forceinline__ void write_columns(Outbox& outbox,
                                              const PackedColumns& packed,
                                              const Rows& c,
                                              int row,
                                              int num_rows,
                                              int column,
                                              const Store& store) {
  unsigned char* const slot = outbox.open();
  write_slot(slot, packed);
  outbox.seal();
  send_columns(outbox, slot, c, row, num_rows, column, store);
}

template <class Product>
class Consumer {
 public:
  using Arguments = typename Product::Arguments;

  __device__ __forceinline__ Consumer(const Arguments& arguments, Shared& shared)
      : arguments_(arguments),
        shared_(shared),
        consumer_(consumer_index()),
        outbox_(shared.slot[consumer_], consumer_),
        a_(gpu::wgmma_descriptor(&shared.stage[0].a[consumer_ * kConsumerRows * kDepth],
                                 Swizzle::bytes_128,
                                 kBoxBytes,
                                 1024)),
        b_(gpu::wgmma_descriptor(&shared.stage[0].b, Swizzle::bytes_128, kBoxBytes, 1024)) {}

  __device__ __forceinline__ void run() {
    for (TileOfC tile = next(); tile.exists(); tile = next()) {
      tile.row += consumer_ * kConsumerRows;
      tile.num_rows -= consumer_ * kConsumerRows;
      // With nothing to compute the stages are waited for and given back all the same. Of a weight
      // a consumer without rows computes, as the barrier in clear() is of both.
      const bool is_beyond = tile.column >= arguments_.grouped.columns;
      if (is_beyond || (!Product::kOverRows && tile.num_rows <= 0)) {
        pass_over(tile.num_steps() + Product::kLastSteps);
        continue;
      }
      const int last = multiply(tile);
      Product product(arguments_, tile);  // what it reads comes while the last products run
      complete(tile, last);
      if constexpr (Product::kLastSteps > 0) {
        finish(product);
      } else {
        product.write(outbox_, sums_);
      }
    }
    outbox_.close();
  }

 private:
  // What the producer has found. It is the same in all lanes, as shuffles tell the compiler: it
  // lets products run on from step to step only where it knows that no lane goes another way.
  __device__ __forceinline__ TileOfC next() {
    gpu::mbarrier_wait(&shared_.tile_full[turn_.stage()], turn_.parity());
    TileOfC tile = shared_.tile[turn_.stage()];
    for (int* const value :
         {&tile.expert, &tile.row, &tile.num_rows, &tile.column, &tile.reduction, &tile.first}) {
      *value = gpu::shuffle_from(*value, 0);
    }
    gpu::sync_warp();  // all lanes have read the tile
    release(&shared_.tile_empty[turn_.stage()]);
    turn_.advance_uniformly();
    return tile;
  }

  // To all blocks of the cluster, which fetch into it: an arrival of this warp at each of them.
  __device__ __forceinline__ void release_stage(int stage) {
    gpu::sync_warp();  // all lanes have read it
    if (gpu::lane_id() < kCluster) {
      gpu::mbarrier_arrive_at(&shared_.empty[stage], gpu::lane_id());
    }
  }

  // Issues all products of a tile. Returns the stage that the last of them read.
  __device__ __forceinline__ int multiply(const TileOfC& tile) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      sums_[i] = 0.0F;
    }
    const int num_steps = tile.num_steps();
    gpu::wgmma_fence(sums_);  // as zeros
    int before = 0;
    for (int step = 0; step < num_steps; ++step) {
      const int stage = place_.stage();
      gpu::mbarrier_wait(&shared_.full[stage], place_.parity());
      if constexpr (Product::kOverRows) {
        const int left = tile.reduction - step * kDepth;
        if (left < kDepth) {
          clear(shared_.stage[stage], left);
        }
      }
      gpu::wgmma_fence();
      issue(stage);
      // The products of the step before are done.
      gpu::wgmma_wait<1>();
      if (step > 0) {
        release_stage(before);
      }
      before = stage;
      place_.advance_uniformly();
    }
    return before;
  }
  // They are done, and the stage is read.
  __device__ __forceinline__ void complete(const TileOfC& tile, int last) {
    gpu::wgmma_wait<0>(sums_);
    if (tile.num_steps() > 0) {
      release_stage(last);
    }
  }

  __device__ __forceinline__ void issue(int stage) {
    const int stage_bytes = stage * static_cast<int>(sizeof(Stage));
    // From one 16 of k to the next.
    constexpr int kBytesOfA = Product::kMajorA == Major::k ? kMmaDepth * 2 : kMmaDepth * kRowBytes;
    constexpr int kBytesOfB = Product::kMajorB == Major::k ? kMmaDepth * 2 : kMmaDepth * kRowBytes;
#pragma unroll
    for (int k = 0; k < kDepth / kMmaDepth; ++k) {
      gpu::wgmma<Product::kMajorA, Product::kMajorB>(sums_,
                                                     advance(a_, stage_bytes + k * kBytesOfA),
                                                     advance(b_, stage_bytes + k * kBytesOfB),
                                                     true);
    }
    gpu::wgmma_commit();
  }

  // The product puts its results in the stage, where what the step brought was, and TMA stores them
  // from there: a stage goes back a step later, when TMA has read it.
  __device__ __forceinline__ void finish(Product& product) {
    int before = 0;
#pragma unroll
    for (int step = 0; step < Product::kLastSteps; ++step) {
      const int stage = place_.stage();
      gpu::mbarrier_wait(&shared_.full[stage], place_.parity());
      product.replace(shared_.stage[stage], sums_, step, consumer_);
      outbox_.seal();
      if (step > 0) {
        outbox_.template wait_read<0>();
        release_stage(before);
      }
      product.send(outbox_, shared_.stage[stage], step, consumer_);
      before = stage;
      place_.advance_uniformly();
    }
    // What threads have read of the last stage (send_columns) comes before what TMA fetches into it,
    // as what they read of the others does by seal().
    gpu::fence_proxy_async();
    outbox_.template wait_read<0>();
    release_stage(before);
  }

  // Rows past the expert's last are the next one's, or were never written: as zeros they add
  // nothing. In both operands, as NaN times zero is NaN. Both consumers read all of b, so that
  // their warps clear the stage's 6 boxes together, one each. In a box values of k from `left` on
  // are one stretch: a swizzle stays within a row.
  __device__ __forceinline__ void clear(Stage& stage, int left) {
    constexpr int kBoxes = static_cast<int>(sizeof(Stage)) / kBoxBytes;
    static_assert(kBoxes <= kReaders, "each box has a warp");
    constexpr int kWidth = kChunkBytes / 2;
    const int box = gpu::warp_id() - kWarpsOfGroup;
    if (box < kBoxes) {
      bf16* const rows = reinterpret_cast<bf16*>(&stage) + box * (kBoxBytes / 2);
      for (int i = left * (kRowBytes / 2) + gpu::lane_id() * kWidth; i < kBoxBytes / 2;
           i += gpu::kWarpSize * kWidth) {
        gpu::store_vector(rows + i, gpu::Vector<bf16>{});
      }
    }
    gpu::fence_proxy_async();
    gpu::sync_named(kClear, kConsumers * kWarpgroup);  // the rows are cleared
  }

  // Steps of a tile in which this consumer has no row, or this block no column.
  __device__ __forceinline__ void pass_over(int num_steps) {
    for (int step = 0; step < num_steps; ++step) {
      gpu::mbarrier_wait(&shared_.full[place_.stage()], place_.parity());
      release_stage(place_.stage());
      place_.advance_uniformly();
    }
  }

  const Arguments& arguments_;
  Shared& shared_;
  int consumer_;
  Outbox outbox_;
  std::uint64_t a_;
  std::uint64_t b_;
  RingPlace<kStages> place_;
  RingPlace<kTiles> turn_;
  float sums_[kSums];
};

// grid: one block an SM, in clusters of kCluster, block: kThreads, shared: Shared
template <class Product>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_matmul_hopper_kernel(const __grid_constant__ typename Product::Arguments arguments) {
  Shared& shared = *gpu::dynamic_shared_for_tma<Shared>();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      gpu::mbarrier_init(&shared.full[stage], 1);
      gpu::mbarrier_init(&shared.empty[stage], kCluster * kReaders);
    }
    for (int tile = 0; tile < kTiles; ++tile) {
      gpu::mbarrier_init(&shared.tile_full[tile], 1);
      gpu::mbarrier_init(&shared.tile_empty[tile], kReaders);
    }
    gpu::fence_mbarrier_init();
  }
  gpu::cluster_sync();  // the mbarriers are there

  if (threadIdx.x < kWarpgroup) {
    gpu::decrease_max_registers<kProducerRegisters>();
    if (gpu::warp_id() == 0 && gpu::elect_one()) {
      produce<Product>(arguments, shared);
    }
  } else {
    gpu::increase_max_registers<kConsumerRegisters>();
    Consumer<Product>(arguments, shared).run();
  }
  gpu::cluster_sync();  // nobody reaches this block any more
}

}  // namespace memphis::kernels::cuda::grouped
