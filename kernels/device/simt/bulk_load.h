// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "kernels/device/simt/shared_memory.h"
#include "kernels/device/simt/tensor_map.h"

namespace memphis::kernels::simt {

// A copy of TMA into shared memory that is under way: issued by the bulk copies, and made by the
// mbarrier that it completes on.
struct BulkLoad {
  TensorMap map;
  Coordinates corner;
  std::byte* to;
  const void* pc;
};

// Makes it.
void finish(const BulkLoad& load, SharedMemory& shared);

// Where the byte at `offset` of a box that begins at `shared` lies, from there, with the swizzle.
std::size_t box_place(const void* shared, std::uint32_t offset, Swizzle swizzle);

}  // namespace memphis::kernels::simt
