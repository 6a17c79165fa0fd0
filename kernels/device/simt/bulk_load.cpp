// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/bulk_load.h"

#include <cstring>

namespace memphis::kernels::simt {

// The swizzle acts on the address: that in shared memory, whose low bits are those of the pointer,
// as its begin has the alignment of the widest pattern.
std::size_t box_place(const void* shared, std::uint32_t offset, Swizzle swizzle) {
  const std::uintptr_t address = address_of(shared);
  const auto low = static_cast<std::uint32_t>((address + offset) & 0xFFFFFFU);
  return static_cast<std::size_t>(swizzled(low, swizzle)) - (address & 0xFFFFFFU);
}

// Device memory is copied by the byte: it is poisoned for the host's memcpy.
void finish(const BulkLoad& load, SharedMemory& shared) {
  shared.end_copy(address_of(load.to), load.map.box_bytes);
  for_each_chunk(load.map, load.corner, [&](const BoxChunk& chunk) {
    std::byte* const to = load.to + box_place(load.to, chunk.offset, load.map.swizzle);
    std::memset(to, 0, kChunkBytes);
    const auto* const from = reinterpret_cast<const std::byte*>(chunk.global);
    for (std::size_t i = chunk.first; i < chunk.last; ++i) {
      to[i] = from[i];
    }
  });
}

}  // namespace memphis::kernels::simt
