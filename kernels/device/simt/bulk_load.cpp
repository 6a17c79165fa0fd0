// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/bulk_load.h"

#include <cstring>

namespace memphis::kernels::simt {

// The swizzle acts on the address, of which it looks at the place within its period alone: shared
// memory begins at a multiple of the widest one. Higher bits stay out of it, as a sum of them would
// carry out of the 32 bits wherever the process has happened to get its memory.
std::size_t box_place(const void* shared, std::uint32_t offset, Swizzle swizzle) {
  constexpr std::uintptr_t kPeriod = 1024;
  const auto begin = static_cast<std::uint32_t>(address_of(shared) % kPeriod);
  return swizzled(begin + offset, swizzle) - begin;
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
