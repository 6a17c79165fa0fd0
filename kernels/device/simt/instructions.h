// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// What the dialect's inline functions are made of: instructions of a warp, by their PTX definition.
namespace memphis::kernels::simt {

// shfl.sync: each lane of `mask` gives `value` and receives that of lane `source`, which must take
// part too.
std::uint64_t shuffle(unsigned mask, std::uint64_t value, int source);
// elect.sync. PTX leaves open which lane it is: the seed chooses it, lane 0 at seed 0.
bool elect_one(unsigned mask);
// vote.sync.ballot and match.any.sync
unsigned ballot(unsigned mask, bool vote);
unsigned match_any(unsigned mask, std::uint32_t value);

// ldmatrix.sync.aligned.m8n8.x4.shared.b16, plain or .trans: `row` is the 16-byte row that this
// lane gives.
void load_matrix_x4(std::uint32_t (&fragment)[4], const void* row, bool transposed);

// stmatrix.sync.aligned.m8n8.x4.shared.b16, plain or .trans. A row counts as written by the lane
// that gives its address.
void store_matrix_x4(void* row, const std::uint32_t (&fragment)[4], bool transposed);

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32. The sum over k is exact, then rounded once;
// hardware truncates its partial sums, so bits agree only where these are exact.
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);

// atom.add on shared or global memory; returns what was there.
void atomic_add(int* counter, int value);
int fetch_add(int* counter, int value);

// st.release.gpu and ld.acquire.gpu, and a loop of the latter, which lets other threads of the
// block and other blocks run. A block that waits for what none of those in flight will write is
// reported: hardware begins blocks in any order, and may keep that one waiting for ever.
void store_release(int* flag, int value);
int load_acquire(const int* flag);
void wait_at_least(const int* flag, int value);

}  // namespace memphis::kernels::simt
