// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/core/tensor.h"

namespace memphis::kernels {

// The order in which routed rows lie: by expert, then by (token, choice). R = T * K; assignment
// a = t * K + k of token t goes to row slot[a], and source[slot[a]] == a. Rows of expert e are
// offsets[e] .. offsets[e + 1].
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device. E <= 1024.
// Order       deterministic: the order is stable. No host round trip.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; an expert outside [0, E) is a
//             ContractError on the CPU and the caller's duty on the GPU.
// Cost        O(T*K*4) bytes and O(chunks * E) counters, all of which each block of a GPU reads.
struct PermuteIndex {
  TensorView slot_TK;          // out  i32
  TensorView source_R;         // out  i32
  TensorView offsets_E1;       // out  i32, [E + 1], the last is R
  TensorView experts_TK;       // in   i32
  TensorView chunk_counts_PE;  // scratch  i32, [kPermuteChunks, E]
};
void permute_index(const PermuteIndex& op, Stream stream);

constexpr std::int64_t kPermuteChunks = 128;

// The order in which rows lie that have come from several ranks: by expert, then by sender, then as
// sent. P ranks have E experts each, rank r those from r * E on; a rank sends its rows in the order
// of its own index over all of them, and what arrives lies sender after sender. The row that
// arrives as number i goes to slot[i], and source[slot[i]] == i. Rows of this rank's expert e are
// offsets[e] .. offsets[e + 1].
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device. R is the room
//             for rows: of more than that the ones without a place are left out, and offsets[E] says
//             how many there are. Of fewer, the rest of slot and source is not written.
// Order       deterministic. No host round trip.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; offsets that fall are a
//             ContractError on the CPU and the caller's duty on the GPU.
// Cost        writes 2 R numbers, and reads P of each of P * E pairs: latency.
struct ArrivalIndex {
  TensorView slot_R;            // out  i32
  TensorView source_R;          // out  i32
  TensorView offsets_E1;        // out  i32, [E + 1], the last is how many rows arrive
  TensorView sent_offsets_PE1;  // in   i32, [P, P * E + 1], PermuteIndex::offsets_E1 of each rank
  std::int64_t rank;            // at which the rows arrive
};
void arrival_index(const ArrivalIndex& op, Stream stream);

// Two moves, each but for the scale the other's derivative. permute is the dispatch, and the
// combine's backward:
//   x_RD[r] = scale * x_TD[source[r] / K]
// unpermute is the combine, and the dispatch's backward, the sum over a token's K rows:
//   y_TD[t] = sum_k y_RD[slot[t, k]]
//
// Accumulate  permute copies bits if scale is 1. unpermute sums k = 0 .. K-1 in f32 (f64 for f64)
//             and rounds once.
// Order       deterministic.
// Cost        reads and writes T*D + R*D elements; memory bound. Without slot_TK a GPU reads each
//             token's row K times, once for each place it goes to.
// Source      Gale et al. 2022, arXiv:2211.15841 (dropless routing).
struct Permute {
  TensorView x_RD;          // out  bf16 | f32 | f64
  TensorView x_TD;          // in   dtype of x_RD
  TensorView source_R;      // in   i32
  TensorView slot_TK = {};  // in   i32, the inverse of source; absent: rows are found by source
  float scale = 1.0F;
};
void permute(const Permute& op, Stream stream);

struct Unpermute {
  TensorView y_TD;     // out  bf16 | f32 | f64
  TensorView y_RD;     // in   dtype of y_TD
  TensorView slot_TK;  // in   i32
};
void unpermute(const Unpermute& op, Stream stream);

// Where `copies` ranks hold a slice each of an expert's width, a routed row goes to all of them: a
// choice becomes `copies` choices of virtual experts, which are numbered as their ranks are: the
// slices c = 0 .. copies-1 of the experts of one rank's share lie one after the other.
//   experts_TK[t, k * copies + c] = (e / experts_per_rank * copies + c) * experts_per_rank
//                                   + e % experts_per_rank,  e = chosen_TK[t, k]
//   gates_TK[t, k * copies + c]   = chosen_gates_TK[t, k]
//
// Operands    see the struct; all contiguous, 16-byte aligned, on the stream's device.
// Order       deterministic: bits are copied.
// Async       returns after enqueueing on `stream`; operands must outlive it.
// Errors      ContractError on shape, dtype, device or alignment; a negative expert is a
//             ContractError on the CPU and the caller's duty on the GPU.
// Cost        O(T*K*copies) elements: latency.
struct SpreadChoices {
  TensorView experts_TK;          // out  i32, [T, K * copies]
  TensorView gates_TK;            // out  f32 | f64, [T, K * copies]
  TensorView chosen_TK;           // in   i32
  TensorView chosen_gates_TK;     // in   dtype of gates
  std::int64_t copies;            // ranks that share an expert
  std::int64_t experts_per_rank;  // of which a rank has a slice each
};
void spread_choices(const SpreadChoices& op, Stream stream);

// Its derivative: dgates_TK[t, k] = sum_c dspread_TK[t, k * copies + c].
//
// Accumulate  in the operands' dtype.
// Order       deterministic: c = 0 .. copies-1.
struct GatherChoices {
  TensorView dgates_TK;   // out  f32 | f64
  TensorView dspread_TK;  // in   dtype of dgates, [T, K * copies]
  std::int64_t copies;
};
void gather_choices(const GatherChoices& op, Stream stream);

// permute.cu, or no_cuda.cpp in a build without the toolkit. Operands are checked already.
namespace cuda {
void permute_index(const PermuteIndex& op, Stream stream);
void arrival_index(const ArrivalIndex& op, Stream stream);
void permute(const Permute& op, Stream stream);
void unpermute(const Unpermute& op, Stream stream);
void spread_choices(const SpreadChoices& op, Stream stream);
void gather_choices(const GatherChoices& op, Stream stream);
}  // namespace cuda

}  // namespace memphis::kernels
