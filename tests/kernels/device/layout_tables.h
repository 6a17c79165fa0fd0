// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "kernels/device/swizzle.h"

// The swizzles of the PTX ISA ("Tensor swizzling modes", tables of the repeating patterns), written
// out: the place of each 16-byte chunk of a row, for 8 rows of 128, 64 and 32 bytes.
namespace memphis::kernels::test {

constexpr int kPlaces128[8][8] = {
    {0, 1, 2, 3, 4, 5, 6, 7},
    {1, 0, 3, 2, 5, 4, 7, 6},
    {2, 3, 0, 1, 6, 7, 4, 5},
    {3, 2, 1, 0, 7, 6, 5, 4},
    {4, 5, 6, 7, 0, 1, 2, 3},
    {5, 4, 7, 6, 1, 0, 3, 2},
    {6, 7, 4, 5, 2, 3, 0, 1},
    {7, 6, 5, 4, 3, 2, 1, 0},
};
constexpr int kPlaces64[8][4] = {
    {0, 1, 2, 3},
    {0, 1, 2, 3},
    {1, 0, 3, 2},
    {1, 0, 3, 2},
    {2, 3, 0, 1},
    {2, 3, 0, 1},
    {3, 2, 1, 0},
    {3, 2, 1, 0},
};
constexpr int kPlaces32[8][2] = {
    {0, 1},
    {0, 1},
    {0, 1},
    {0, 1},
    {1, 0},
    {1, 0},
    {1, 0},
    {1, 0},
};

// Bytes of a row of the pattern; those of a core matrix, 16, where there is none.
constexpr int row_bytes(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::none:
      return 16;
    case Swizzle::bytes_32:
      return 32;
    case Swizzle::bytes_64:
      return 64;
    case Swizzle::bytes_128:
      return 128;
  }
  return 0;
}

// Where byte `byte` of row `row` lies in a tile of such rows, one after the other.
constexpr std::size_t place_of(Swizzle swizzle, int row, int byte) {
  const int chunk = byte / 16;
  int place = chunk;
  if (swizzle == Swizzle::bytes_128) {
    place = kPlaces128[row % 8][chunk];
  } else if (swizzle == Swizzle::bytes_64) {
    place = kPlaces64[row % 8][chunk];
  } else if (swizzle == Swizzle::bytes_32) {
    place = kPlaces32[row % 8][chunk];
  }
  return static_cast<std::size_t>(row * row_bytes(swizzle) + place * 16 + byte % 16);
}

}  // namespace memphis::kernels::test
