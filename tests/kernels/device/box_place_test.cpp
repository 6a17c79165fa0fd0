// SPDX-License-Identifier: Apache-2.0
//
// Where a box of TMA lies on the simulated device, whatever memory the process was given.
#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/device/simt/bulk_load.h"

namespace memphis::kernels::simt {
namespace {

constexpr std::uint32_t kBoxBytes = 64 << 10;
constexpr std::uintptr_t kAlignment = 1024;  // of shared memory

// The place of each chunk of a box that begins at `address`, which is not read.
std::vector<std::size_t> places(std::uintptr_t address, Swizzle swizzle) {
  std::vector<std::size_t> result;
  for (std::uint32_t offset = 0; offset < kBoxBytes; offset += kChunkBytes) {
    result.push_back(box_place(reinterpret_cast<const void*>(address), offset, swizzle));
  }
  return result;
}

// A power of two within the box is where a sum of the address's low bits alone carries.
TEST(BoxPlace, IsTheSameWhereverSharedMemoryLies) {
  for (const Swizzle swizzle :
       {Swizzle::none, Swizzle::bytes_32, Swizzle::bytes_64, Swizzle::bytes_128}) {
    const std::vector<std::size_t> expected = places(std::uintptr_t{1} << 46U, swizzle);
    std::vector<std::size_t> sorted = expected;
    std::sort(sorted.begin(), sorted.end());
    for (std::size_t i = 0; i < sorted.size(); ++i) {
      ASSERT_EQ(sorted[i], i * kChunkBytes) << "each chunk has a place of its own in the box";
    }
    for (unsigned bit = 12; bit < 47; ++bit) {
      const std::uintptr_t within = (std::uintptr_t{1} << bit) - 2 * kAlignment;
      EXPECT_EQ(places((std::uintptr_t{1} << 46U) + within, swizzle), expected)
          << "a box across bit " << bit << " of the address";
    }
  }
}

TEST(BoxPlace, FollowsTheAddressWithinThePeriod) {
  // The second of two boxes of 128 bytes: row 1 of the pattern, whose chunks change in pairs.
  const std::uintptr_t second = (std::uintptr_t{1} << 46U) + 128;
  EXPECT_EQ(box_place(reinterpret_cast<const void*>(second), 0, Swizzle::bytes_128), 16U);
  EXPECT_EQ(box_place(reinterpret_cast<const void*>(second), 16, Swizzle::bytes_128), 0U);
}

}  // namespace
}  // namespace memphis::kernels::simt
