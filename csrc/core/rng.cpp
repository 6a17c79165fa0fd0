// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/rng.h"

#include <cmath>
#include <numbers>

namespace memphis {
namespace {

constexpr std::uint32_t low(std::uint64_t word) {
  return static_cast<std::uint32_t>(word);
}
constexpr std::uint32_t high(std::uint64_t word) {
  return static_cast<std::uint32_t>(word >> 32U);
}

}  // namespace

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                    std::array<std::uint32_t, 2> key) {
  // Multipliers and Weyl increments of the paper, table 3.
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53U;
  constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57U;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9U;
  constexpr std::uint32_t kWeyl1 = 0xBB67AE85U;
  constexpr int kRounds = 10;
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter[0];
    const std::uint64_t product1 = kMultiplier1 * counter[2];
    counter = {high(product1) ^ counter[1] ^ key[0],
               low(product1),
               high(product0) ^ counter[3] ^ key[1],
               low(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

std::uint64_t fnv1a(std::string_view text) {
  std::uint64_t hash = 0xCBF29CE484222325U;
  for (const char letter : text) {
    hash ^= static_cast<unsigned char>(letter);
    hash *= 0x100000001B3U;
  }
  return hash;
}

CounterRng::CounterRng(std::uint64_t seed, std::string_view name)
    : key_{low(seed), high(seed)}, stream_(fnv1a(name)) {}

std::array<std::uint32_t, 4> CounterRng::block(std::uint64_t index) const {
  return philox({low(index), high(index), low(stream_), high(stream_)}, key_);
}

std::uint32_t CounterRng::word(std::uint64_t index) const {
  return block(index)[0];
}

std::uint64_t CounterRng::word64(std::uint64_t index) const {
  const auto words = block(index);
  return (static_cast<std::uint64_t>(words[1]) << 32U) | words[0];
}

double CounterRng::uniform(std::uint64_t index) const {
  return static_cast<double>(word64(index) >> 11U) * 0x1p-53;
}

double CounterRng::normal(std::uint64_t index) const {
  const auto words = block(index);
  const std::uint64_t first = (static_cast<std::uint64_t>(words[1]) << 32U) | words[0];
  const std::uint64_t second = (static_cast<std::uint64_t>(words[3]) << 32U) | words[2];
  // (0, 1] and not [0, 1): the logarithm is finite.
  const double radius_uniform = (static_cast<double>(first >> 11U) + 1.0) * 0x1p-53;
  const double angle_uniform = static_cast<double>(second >> 11U) * 0x1p-53;
  return std::sqrt(-2.0 * std::log(radius_uniform)) *
         std::cos(2.0 * std::numbers::pi * angle_uniform);
}

}  // namespace memphis
