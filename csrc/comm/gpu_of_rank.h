// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "csrc/comm/communicator.h"

namespace memphis {

// What a rank says of its device.
struct GpuClaim {
  std::int64_t on_gpu = 0;                 // 0 or 1
  std::int64_t num_gpus = 0;               // that it sees
  std::int64_t local_rank = 0;             // among the ranks of its machine
  std::int64_t may_share = 0;              // 0 or 1
  std::array<std::int64_t, 2> identity{};  // of the GPU
};

// Which of the `num_gpus` that it sees a rank uses. One that sees a single GPU takes it: launchers
// hide the other ranks'. PreflightError where there are too few, unless ranks may share one.
int gpu_of_rank(int local_rank, int num_gpus, bool may_share);

// PreflightError where one rank is on a GPU and another is not, or where two have the same one and
// may not share it. `claims` are in the order of ranks.
void check_claims(std::span<const GpuClaim> claims);

// Makes this thread use the GPU of this rank, number `local_rank` of its machine, if `device` is
// the GPU. Every rank of the job calls, before anything else on the device. Ranks share a GPU where
// NCCL_HOSTID is set (which makes NCCL accept it): for tests.
void use_own_gpu(Communicator& all_host, int local_rank, Device device);

}  // namespace memphis
