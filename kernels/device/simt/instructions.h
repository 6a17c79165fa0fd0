// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// What the dialect's inline functions are made of: instructions of a warp, by their PTX definition.
namespace memphis::kernels::simt {

// shfl.sync: each lane of `mask` gives `value` and receives that of lane `source`, which must take
// part too.
std::uint64_t shuffle(unsigned mask, std::uint64_t value, int source);
// vote.sync.ballot and match.any.sync
unsigned ballot(unsigned mask, bool vote);
unsigned match_any(unsigned mask, std::uint32_t value);

// ldmatrix.sync.aligned.m8n8.x4.shared.b16, plain or .trans: `row` is the 16-byte row that this
// lane gives.
void load_matrix_x4(std::uint32_t (&fragment)[4], const void* row, bool transposed);

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32. The sum over k is exact, then rounded once;
// hardware truncates its partial sums, so bits agree only where these are exact.
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);

// atom.add on shared or global memory.
void atomic_add(int* counter, int value);

}  // namespace memphis::kernels::simt
