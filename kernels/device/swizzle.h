// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// How tiles lie in shared memory for TMA and wgmma, in words of the PTX ISA ("Tensor swizzling
// modes", "Asynchronous warpgroup-level matrix shared memory layout"). Both dialects and the host
// use these.
namespace memphis::kernels {

// What a swizzle moves, and TMA and wgmma read and write, as a whole.
constexpr int kChunkBytes = 16;

// The chunks of a row of 32, 64 or 128 bytes change places, by the row, so that a column of
// chunks meets all banks. A tile lies at a multiple of the pattern's period: 8 rows.
enum class Swizzle : std::uint8_t { none, bytes_32, bytes_64, bytes_128 };

// Bytes of the row that the pattern stays within; 0 for none.
constexpr int swizzle_bytes(Swizzle swizzle) {
  return swizzle == Swizzle::none ? 0 : kChunkBytes << static_cast<int>(swizzle);
}

// Where a byte lies whose place without the swizzle is `address`: bits 4 to 6 (5, 4) are xored with
// bits 7 to 9 (8, 7). Holds for offsets in a tile too, as the tile lies at a multiple of the
// period.
constexpr std::uint32_t swizzled(std::uint32_t address, Swizzle swizzle) {
  const std::uint32_t chunks = (1U << static_cast<unsigned>(swizzle)) - 1;
  return address ^ ((address >> 7U & chunks) << 4U);
}

// The dimension of an operand of wgmma along which elements are contiguous: k, or m of A and n of
// B.
enum class Major : std::uint8_t { k, mn };

// The matrix descriptor of wgmma for a tile at `address` (see shared_address), 16-byte aligned as
// all three are:
//                 leading_bytes                            stride_bytes
//   k, none       from 8 columns of k to the next 8        from 8 rows to the next 8
//   k, swizzled   not used                                 from 8 rows to the next 8
//   mn, none      from 8 values of k to the next 8         from 8 of mn to the next 8
//   mn, swizzled  from a swizzle's row of mn to the next   from 8 values of k to the next 8
constexpr std::uint64_t matrix_descriptor(std::uint32_t address,
                                          Swizzle swizzle,
                                          int leading_bytes,
                                          int stride_bytes) {
  const auto encode = [](std::uint32_t bytes) { return std::uint64_t{(bytes & 0x3FFFFU) >> 4U}; };
  // 0 none, 1 128 bytes, 2 64 bytes, 3 32 bytes
  const std::uint64_t mode = swizzle == Swizzle::none ? 0 : 4 - static_cast<std::uint64_t>(swizzle);
  return encode(address) | encode(static_cast<std::uint32_t>(leading_bytes)) << 16U |
         encode(static_cast<std::uint32_t>(stride_bytes)) << 32U | mode << 62U;
}

// The descriptor of the same tile `bytes` further on, a multiple of 16: the next step of k. Shared
// memory ends before the address would carry, so the upper half stays as it is, and costs nothing.
constexpr std::uint64_t advance(std::uint64_t descriptor, int bytes) {
  const std::uint32_t low =
      static_cast<std::uint32_t>(descriptor) + (static_cast<std::uint32_t>(bytes) >> 4U);
  return (descriptor >> 32U << 32U) | low;
}

}  // namespace memphis::kernels
