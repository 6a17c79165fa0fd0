// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/core/device.h"

namespace memphis {

// A memory that others may take from as well.
struct MemoryPool {
  std::array<std::int64_t, 2> identity{};  // the same to all processes that share it, to no other
  std::size_t free_bytes = 0;
  std::string name;  // "this machine", "the GPU", or the file that limits a control group
};

// Those that memory of `device` is taken from, all of which must have enough: the GPU's; or this
// machine's and, where a control group limits this process (a container, a job), the group's.
std::vector<MemoryPool> memory_pools(Device device);

// The same to all processes of a machine, in whatever containers, and on no other machine; until it
// starts again.
std::int64_t machine_identity();

}  // namespace memphis
