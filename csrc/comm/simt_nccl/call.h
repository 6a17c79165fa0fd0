// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <nccl.h>

namespace memphis::simt_nccl {

enum class Kind : std::int32_t { all_reduce, all_gather, reduce_scatter, broadcast, send, receive };
constexpr std::size_t kNumKinds = 6;

// Of a call what ranks must agree in; lies in shared memory.
struct Terms {
  Kind kind = Kind::all_reduce;
  ncclDataType_t type = ncclFloat32;
  std::uint64_t count = 0;
  ncclRedOp_t op = ncclSum;  // of a reduction
  std::int32_t peer = -1;    // the root, or the other rank

  bool operator==(const Terms&) const = default;
};

struct Call {
  Terms terms;
  const std::byte* send = nullptr;
  std::byte* receive = nullptr;
  cudaStream_t stream = nullptr;
};

bool is_collective(Kind kind);
std::size_t bytes_of(ncclDataType_t type);

// "ncclSend(count 8, ncclFloat32, to rank 1)".
std::string describe(const Terms& terms);
// Those of a group, as many as say enough.
std::string describe(std::span<const Call> calls);

// What is wrong with a call of `rank` by itself; empty if nothing is.
std::string problem_of(const Call& call, int rank, int num_ranks);

// result = the reduction of `pieces` in their order, of `count` elements each.
void reduce(const Terms& terms,
            std::span<const std::byte* const> pieces,
            std::byte* result,
            std::size_t count);

}  // namespace memphis::simt_nccl
