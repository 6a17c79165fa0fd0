// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/core/device.h"

namespace memphis::kernels {

struct Dim3 {
  std::int64_t x = 1;
  std::int64_t y = 1;
  std::int64_t z = 1;
};

// How a kernel is launched: what a pure function chooses from shape and device.
struct Launch {
  Dim3 grid;
  Dim3 block;
  std::size_t shared_bytes = 0;  // dynamic
  // Neighbours in grid.x that run at the same time and reach each other's shared memory, on sm_90
  // and newer (gpu_hopper_cluster.h).
  std::int64_t cluster = 1;
  Stream stream;
};

// Of the GPU that this process runs on, asked for once.
const DeviceInfo& this_device();

// How many multiprocessors of it a kernel finds free whose blocks take one each and stay for the
// whole launch: fewer where kernels of other streams hold some (Stream::held_elsewhere). A block that
// found none would begin when the others end, and double the kernel's time. Half of them at least:
// who holds so many is soon done.
std::int64_t free_multiprocessors(Stream stream);

// False for an empty grid, which launches nothing. Counts the launch: see enqueued_count. Throws
// ContractError if a launch exceeds what every device of sm_80 and newer allows.
bool check_launch(const Launch& launch);

// What a block has without asking, static and dynamic together.
constexpr std::size_t kSharedWithoutOptIn = std::size_t{48} << 10;
// The dynamic shared memory that a kernel must be allowed before it is launched with so much. 0:
// nothing is asked.
constexpr std::size_t shared_opt_in(std::size_t static_bytes, std::size_t dynamic_bytes) {
  return static_bytes + dynamic_bytes > kSharedWithoutOptIn ? dynamic_bytes : 0;
}

constexpr std::int64_t ceil_div(std::int64_t numerator, std::int64_t denominator) {
  return (numerator + denominator - 1) / denominator;
}

}  // namespace memphis::kernels

// launch(kernel, Launch{…}, arguments…): from the dialect that the build chose, <gpu_launch.h> of
// device/cuda or of device/simt. It throws what check_launch throws and whatever the launch itself
// reports.
