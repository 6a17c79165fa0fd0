// SPDX-License-Identifier: Apache-2.0
//
// The index is a counting sort in two launches: a block counts the experts of its chunk; then one
// turns all counts into first rows and places its chunk in order. Bound by latency: R is thousands.
// The order of what arrives is a launch: a block places the rows of one sender for one expert.
// Choices are spread and gathered by a thread each.
//
// The moves are bound by memory. To and from a token's K rows a thread takes one vector of 16 bytes
// of each: at no more than 32 registers 2048 threads are on an SM, which have 32 KB on their way to
// the rows and, with two rows at once, 64 KB from them. To rows that are found by their source a
// warp takes a row, and of it four vectors at a time.
#include "kernels/permute/permute.h"

#include <algorithm>
#include <cstdint>

#include <gpu_launch.h>
#include <gpu_math.h>
#include <gpu_memory.h>
#include <gpu_warp.h>

#include "kernels/visit.h"
#include "kernels/whole_warps.h"

namespace memphis::kernels::cuda {
namespace {

constexpr int kMaxExperts = 1024;     // the contract's; a chunk's counters are in shared memory
constexpr int kCountThreads = 256;    // a chunk of Grok-1's 16384 rows is 128 assignments
constexpr int kPlaceThreads = 256;    // four counts of Grok-1's each, of 8 experts in 128 chunks
constexpr int kArrivalThreads = 128;  // of a block that places what one rank sends to one expert
constexpr int kRowsPerBlock = 8;      // warps of a block that moves rows
constexpr int kMoveThreads = kRowsPerBlock * gpu::kWarpSize;  // of other moves at most
constexpr int kChoiceThreads = 256;  // of a block whose threads take choices

// grid: kPermuteChunks, block: kCountThreads; requires E <= kMaxExperts
__global__ void permute_count_kernel(std::int32_t* __restrict__ chunk_counts,
                                     const std::int32_t* __restrict__ experts,
                                     std::int64_t R,
                                     std::int64_t chunk,
                                     int E) {
  __shared__ int counts[kMaxExperts];
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < E; e += kCountThreads) {
    counts[e] = 0;
  }
  gpu::sync_threads();  // all counters are zero
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * chunk;
  const std::int64_t end = begin + chunk < R ? begin + chunk : R;
  for (std::int64_t a = begin + thread; a < end; a += kCountThreads) {
    gpu::atomic_add(&counts[experts[a]], 1);
  }
  gpu::sync_threads();  // all assignments are counted
  for (int e = thread; e < E; e += kCountThreads) {
    chunk_counts[static_cast<std::int64_t>(blockIdx.x) * E + e] = counts[e];
  }
}

// The sum of the values of this lane and those below.
__device__ __forceinline__ int inclusive_scan(int value) {
  for (int delta = 1; delta < gpu::kWarpSize; delta *= 2) {
    const int below = gpu::shuffle_up(value, delta);
    value += gpu::lane_id() >= delta ? below : 0;
  }
  return value;
}

// Every block adds up all chunks for itself, which is less than a launch between the two would be.
// A warp of it places 32 assignments at a time: the lanes of one expert take consecutive rows in
// their order.
// grid: kPermuteChunks, block: kPlaceThreads; requires E <= kMaxExperts
__global__ void permute_place_kernel(std::int32_t* __restrict__ slot,
                                     std::int32_t* __restrict__ source,
                                     std::int32_t* __restrict__ offsets,
                                     const std::int32_t* __restrict__ chunk_counts,
                                     const std::int32_t* __restrict__ experts,
                                     std::int64_t R,
                                     std::int64_t chunk,
                                     int E) {
  __shared__ int next[kMaxExperts];    // of the chunks before this one; then where rows go
  __shared__ int others[kMaxExperts];  // of this chunk and those behind it
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = gpu::lane_id();

  // reduce: the rows of each expert
  for (int e = thread; e < E; e += kPlaceThreads) {
    next[e] = 0;
    others[e] = 0;
  }
  gpu::sync_threads();  // all sums are zero
  const int own_counts = static_cast<int>(blockIdx.x) * E;
#pragma unroll 4
  for (int i = thread; i < static_cast<int>(kPermuteChunks) * E; i += kPlaceThreads) {
    int* const sums = i < own_counts ? next : others;
    gpu::atomic_add(&sums[i % E], chunk_counts[i]);
  }
  gpu::sync_threads();  // all chunks are added
  if (gpu::warp_id() > 0) {
    return;
  }

  // scan: the first row of each expert, and that of this chunk
  int end = 0;
  for (int first = 0; first < E; first += gpu::kWarpSize) {
    const int e = first + lane;
    const int own = e < E ? next[e] + others[e] : 0;
    const int through = end + inclusive_scan(own);
    if (e < E) {
      next[e] += through - own;
    }
    if (e < E && blockIdx.x == 0) {
      offsets[e + 1] = through;
    }
    end = gpu::shuffle_from(through, gpu::kWarpSize - 1);
  }
  if (lane == 0 && blockIdx.x == 0) {
    offsets[0] = 0;
  }
  gpu::sync_warp();  // all first rows are there

  // write
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * chunk;
  const std::int64_t end_of_chunk = begin + chunk < R ? begin + chunk : R;
  for (std::int64_t first = begin; first < end_of_chunk; first += gpu::kWarpSize) {
    const std::int64_t a = first + lane;
    const bool active = a < end_of_chunk;
    const int expert = active ? experts[a] : -1;
    const unsigned peers = gpu::match_any(expert);
    const int rank = gpu::count_bits(peers & ((1U << static_cast<unsigned>(lane)) - 1U));
    const int row = active ? next[expert] + rank : 0;
    gpu::sync_warp();  // all lanes have read `next`
    if (active) {
      slot[a] = row;
      source[row] = static_cast<std::int32_t>(a);
      if (rank == 0) {
        next[expert] = row + gpu::count_bits(peers);
      }
    }
    gpu::sync_warp();  // `next` is advanced
  }
}

// The sum over the warp, in every lane.
__device__ __forceinline__ int warp_total(int value) {
  return gpu::shuffle_from(inclusive_scan(value), gpu::kWarpSize - 1);
}

// Every warp sums what lies before for itself: P numbers, fewer than a barrier is worth.
// grid: (P, E), block: kArrivalThreads
__global__ void arrival_index_kernel(std::int32_t* __restrict__ slot,
                                     std::int32_t* __restrict__ source,
                                     std::int32_t* __restrict__ offsets,
                                     const std::int32_t* __restrict__ sent_offsets,
                                     std::int64_t R,
                                     int P,
                                     int E,
                                     int rank) {
  const int sender = static_cast<int>(blockIdx.x);
  const int expert = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t stride = static_cast<std::int64_t>(P) * E + 1;
  const std::int32_t* const of_rank = sent_offsets + static_cast<std::int64_t>(rank) * E;

  // reduce: rows of experts before this one, and those of senders before this one
  int place = 0;
  int arrived = 0;
  for (int other = gpu::lane_id(); other < P; other += gpu::kWarpSize) {
    const std::int32_t* const sent = of_rank + other * stride;
    place += sent[expert] - sent[0];
    if (other < sender) {
      place += sent[expert + 1] - sent[expert];
      arrived += sent[E] - sent[0];
    }
  }
  place = warp_total(place);
  arrived = warp_total(arrived);

  // write
  const std::int32_t* const own = of_rank + sender * stride;
  const int count = own[expert + 1] - own[expert];
  arrived += own[expert] - own[0];
  for (int i = thread; i < count; i += kArrivalThreads) {
    if (arrived + i < R && place + i < R) {
      slot[arrived + i] = place + i;
      source[place + i] = arrived + i;
    }
  }
  if (thread == 0 && sender == 0) {
    offsets[expert] = place;
  }
  if (thread == 0 && sender == P - 1 && expert == E - 1) {
    offsets[E] = place + count;
  }
}

// A vector as it arrives; kScaled false copies bits.
template <bool kScaled, class T, int kWidth>
__device__ __forceinline__ gpu::Vector<T, kWidth> moved(gpu::Vector<T, kWidth> vector,
                                                        float scale) {
  if constexpr (kScaled) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      vector.values[i] = gpu::from_float<T>(scale * gpu::to_float(vector.values[i]));
    }
  }
  return vector;
}

// grid: R / kRowsPerBlock, block: kMoveThreads; kWidth 1, or D % kWidth == 0
template <class T, int kWidth, bool kScaled>
__global__ void permute_kernel(T* __restrict__ rows,
                               const T* __restrict__ x,
                               const std::int32_t* __restrict__ source,
                               float scale,
                               std::int64_t R,
                               std::int64_t K,
                               std::int64_t D) {
  const std::int64_t r = static_cast<std::int64_t>(blockIdx.x) * kRowsPerBlock + gpu::warp_id();
  if (r >= R) {
    return;
  }
  const T* const from = x + source[r] / K * D;
  T* const to = rows + r * D;
#pragma unroll 4
  for (std::int64_t d = gpu::lane_id() * kWidth; d < D; d += gpu::kWarpSize * kWidth) {
    gpu::store_vector(to + d, moved<kScaled>(gpu::load_vector<kWidth>(from + d), scale));
  }
}

// The vector of a token's row that a thread of its blocks takes.
template <int kWidth>
__device__ __forceinline__ std::int64_t own_column() {
  return (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kWidth;
}

// grid: T x blocks that share a row, block: whole warps; kWidth 1, or D % kWidth == 0
template <class T, int kWidth, bool kScaled>
__global__ void permute_tokens_kernel(T* __restrict__ rows,
                                      const T* __restrict__ x,
                                      const std::int32_t* __restrict__ slot,
                                      float scale,
                                      int K,
                                      std::int64_t D) {
  const auto t = static_cast<std::int64_t>(blockIdx.x);
  const std::int64_t d = own_column<kWidth>();
  if (d >= D) {
    return;
  }
  const auto values = moved<kScaled>(gpu::load_vector<kWidth>(x + t * D + d), scale);
#pragma unroll 1  // K is small
  for (int k = 0; k < K; ++k) {
    gpu::store_vector(rows + slot[t * K + k] * D + d, values);
  }
}

// What adds to every value without changing it; 0 would turn -0 into 0.
constexpr float kNothing = -0.0F;

template <int kWidth>
__device__ __forceinline__ void fill(float (&values)[kWidth], float value) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    values[i] = value;
  }
}

// grid: T x blocks that share a row, block: whole warps; kWidth 1, or D % kWidth == 0, and
// K % kAtOnce == 0
template <class T, int kWidth, int kAtOnce>
__global__ void unpermute_kernel(T* __restrict__ y,
                                 const T* __restrict__ rows,
                                 const std::int32_t* __restrict__ slot,
                                 int K,
                                 std::int64_t D) {
  const auto t = static_cast<std::int64_t>(blockIdx.x);
  const std::int64_t d = own_column<kWidth>();
  if (d >= D) {
    return;
  }
  // reduce: the vectors of kAtOnce rows are on their way before the first of them is added
  float sums[kWidth];
  fill(sums, kNothing);
#pragma unroll 1  // K is small
  for (int first = 0; first < K; first += kAtOnce) {
    float values[kAtOnce][kWidth];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      gpu::load_floats(rows + slot[t * K + first + k] * D + d, values[k]);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        sums[i] += values[k][i];
      }
    }
  }
  // write
  gpu::store_floats(y + t * D + d, sums);
}

// grid: T * K * copies / kChoiceThreads, block: kChoiceThreads
__global__ void spread_choices_kernel(std::int32_t* __restrict__ experts,
                                      float* __restrict__ gates,
                                      const std::int32_t* __restrict__ chosen,
                                      const float* __restrict__ chosen_gates,
                                      std::int64_t num_spread,
                                      int copies,
                                      int experts_per_rank) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kChoiceThreads + threadIdx.x;
  if (i >= num_spread) {
    return;
  }
  const std::int32_t expert = chosen[i / copies];
  const int copy = static_cast<int>(i % copies);
  experts[i] =
      (expert / experts_per_rank * copies + copy) * experts_per_rank + expert % experts_per_rank;
  gates[i] = chosen_gates[i / copies];
}

// grid: T * K / kChoiceThreads, block: kChoiceThreads
__global__ void gather_choices_kernel(float* __restrict__ dgates,
                                      const float* __restrict__ dspread,
                                      std::int64_t num_choices,
                                      int copies) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kChoiceThreads + threadIdx.x;
  if (i >= num_choices) {
    return;
  }
  float sum = dspread[i * copies];
  for (int c = 1; c < copies; ++c) {
    sum += dspread[i * copies + c];
  }
  dgates[i] = sum;
}

Launch choose_choices(std::int64_t num_choices, Stream stream) {
  return {.grid = {.x = ceil_div(num_choices, kChoiceThreads)},
          .block = {.x = kChoiceThreads},
          .shared_bytes = 0,
          .stream = stream};
}

Launch choose_move(std::int64_t num_rows, Stream stream) {
  return {.grid = {.x = ceil_div(num_rows, kRowsPerBlock)},
          .block = {.x = kMoveThreads},
          .shared_bytes = 0,
          .stream = stream};
}

// The blocks of a token share its vectors out evenly.
Launch choose_token_move(std::int64_t num_tokens, std::int64_t num_vectors, Stream stream) {
  const std::int64_t blocks = std::max<std::int64_t>(1, ceil_div(num_vectors, kMoveThreads));
  return {.grid = {.x = num_tokens, .y = blocks},
          .block = {.x = whole_warps(ceil_div(num_vectors, blocks), kMoveThreads)},
          .shared_bytes = 0,
          .stream = stream};
}

template <class T, int kWidth, bool kScaled>
void launch_permute(const Permute& op, Stream stream) {
  const std::int64_t D = op.x_TD.dim(1);
  if (op.slot_TK.present()) {
    launch(permute_tokens_kernel<T, kWidth, kScaled>,
           choose_token_move(op.x_TD.dim(0), ceil_div(D, kWidth), stream),
           op.x_RD.as<T>(),
           op.x_TD.as<T>(),
           op.slot_TK.as<std::int32_t>(),
           op.scale,
           static_cast<int>(op.slot_TK.dim(1)),
           D);
    return;
  }
  const std::int64_t R = op.x_RD.dim(0);
  launch(permute_kernel<T, kWidth, kScaled>,
         choose_move(R, stream),
         op.x_RD.as<T>(),
         op.x_TD.as<T>(),
         op.source_R.as<std::int32_t>(),
         op.scale,
         R,
         R == 0 ? 1 : R / op.x_TD.dim(0),
         D);
}

template <class T, int kWidth>
void launch_unpermute(const Unpermute& op, Stream stream) {
  const std::int64_t D = op.y_TD.dim(1);
  const auto K = static_cast<int>(op.slot_TK.dim(1));
  launch(K % 2 == 0 ? unpermute_kernel<T, kWidth, 2> : unpermute_kernel<T, kWidth, 1>,
         choose_token_move(op.y_TD.dim(0), ceil_div(D, kWidth), stream),
         op.y_TD.as<T>(),
         op.y_RD.as<T>(),
         op.slot_TK.as<std::int32_t>(),
         K,
         D);
}

// Calls visitor.operator()<T, kWidth>() with the widest vectors that all rows of D elements are
// aligned to.
template <class Visitor>
void visit_rows(DType dtype, std::int64_t D, Visitor&& visitor) {
  visit_gpu_float(dtype, [&]<class T>() {
    constexpr int kWidth = gpu::kVectorWidth<T>;
    if (D % kWidth == 0) {
      visitor.template operator()<T, kWidth>();
    } else {
      visitor.template operator()<T, 1>();
    }
  });
}

}  // namespace

void permute_index(const PermuteIndex& op, Stream stream) {
  const std::int64_t R = op.experts_TK.num_elements();
  const std::int64_t E = op.chunk_counts_PE.dim(1);
  const std::int64_t chunk = ceil_div(R, kPermuteChunks);
  auto* const chunk_counts = op.chunk_counts_PE.as<std::int32_t>();
  const auto* const experts = op.experts_TK.as<std::int32_t>();
  const auto blocks = [&](std::int64_t grid, std::int64_t threads) {
    return Launch{
        .grid = {.x = grid}, .block = {.x = threads}, .shared_bytes = 0, .stream = stream};
  };
  launch(permute_count_kernel,
         blocks(kPermuteChunks, kCountThreads),
         chunk_counts,
         experts,
         R,
         chunk,
         E);
  launch(permute_place_kernel,
         blocks(kPermuteChunks, kPlaceThreads),
         op.slot_TK.as<std::int32_t>(),
         op.source_R.as<std::int32_t>(),
         op.offsets_E1.as<std::int32_t>(),
         chunk_counts,
         experts,
         R,
         chunk,
         E);
}

void arrival_index(const ArrivalIndex& op, Stream stream) {
  const std::int64_t E = op.offsets_E1.dim(0) - 1;
  const std::int64_t P = op.sent_offsets_PE1.dim(0);
  launch(arrival_index_kernel,
         {.grid = {.x = P, .y = E},
          .block = {.x = kArrivalThreads},
          .shared_bytes = 0,
          .stream = stream},
         op.slot_R.as<std::int32_t>(),
         op.source_R.as<std::int32_t>(),
         op.offsets_E1.as<std::int32_t>(),
         op.sent_offsets_PE1.as<std::int32_t>(),
         op.slot_R.dim(0),
         static_cast<int>(P),
         static_cast<int>(E),
         static_cast<int>(op.rank));
}

void permute(const Permute& op, Stream stream) {
  visit_rows(op.x_TD.dtype, op.x_TD.dim(1), [&]<class T, int kWidth>() {
    if (op.scale == 1.0F) {
      launch_permute<T, kWidth, false>(op, stream);
    } else {
      launch_permute<T, kWidth, true>(op, stream);
    }
  });
}

void unpermute(const Unpermute& op, Stream stream) {
  visit_rows(op.y_TD.dtype, op.y_TD.dim(1), [&]<class T, int kWidth>() {
    launch_unpermute<T, kWidth>(op, stream);
  });
}

void spread_choices(const SpreadChoices& op, Stream stream) {
  const std::int64_t num_spread = op.experts_TK.num_elements();
  launch(spread_choices_kernel,
         choose_choices(num_spread, stream),
         op.experts_TK.as<std::int32_t>(),
         op.gates_TK.as<float>(),
         op.chosen_TK.as<std::int32_t>(),
         op.chosen_gates_TK.as<float>(),
         num_spread,
         static_cast<int>(op.copies),
         static_cast<int>(op.experts_per_rank));
}

void gather_choices(const GatherChoices& op, Stream stream) {
  const std::int64_t num_choices = op.dgates_TK.num_elements();
  launch(gather_choices_kernel,
         choose_choices(num_choices, stream),
         op.dgates_TK.as<float>(),
         op.dspread_TK.as<float>(),
         num_choices,
         static_cast<int>(op.copies));
}

}  // namespace memphis::kernels::cuda
