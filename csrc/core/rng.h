// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace memphis {

// Philox4x32-10: four 32-bit words as a pure function of a 128-bit counter and a 64-bit key. There
// is no state, so any element of any tensor can be drawn by anybody, in any order, with the same
// bits. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; the test holds
// it to the known answers of the authors' Random123.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                    std::array<std::uint32_t, 2> key);

// A stream of numbers named by a seed and a text ("init/model.norm.weight"); element i of it is a
// pure function of (seed, name, i).
class CounterRng {
 public:
  CounterRng(std::uint64_t seed, std::string_view name);

  std::uint32_t word(std::uint64_t index) const;    // uniform over 32 bits
  std::uint64_t word64(std::uint64_t index) const;  // uniform over 64 bits
  double uniform(std::uint64_t index) const;        // in [0, 1), 53 bits
  double normal(std::uint64_t index) const;         // mean 0, variance 1 (Box and Muller 1958)

 private:
  std::array<std::uint32_t, 4> block(std::uint64_t index) const;

  std::array<std::uint32_t, 2> key_;
  std::uint64_t stream_;
};

// FNV-1a, 64 bits: a stable name for a text. Not for anything an adversary may choose.
std::uint64_t fnv1a(std::string_view text);

}  // namespace memphis
