// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/permutation.h"

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"

namespace memphis {
namespace {

std::vector<std::uint64_t> permutation(std::uint64_t size, std::uint64_t key, std::uint64_t tweak) {
  std::vector<std::uint64_t> images(size);
  for (std::uint64_t i = 0; i < size; ++i) {
    images[i] = permuted_index(i, size, key, tweak);
  }
  return images;
}

void expect_bijection(std::uint64_t size) {
  std::vector<bool> seen(size, false);
  for (const std::uint64_t image : permutation(size, 42, size)) {
    ASSERT_LT(image, size);
    ASSERT_FALSE(seen[image]) << image << " is hit twice in [0, " << size << ")";
    seen[image] = true;
  }
}

TEST(Permutation, IsABijection) {
  for (std::uint64_t size = 1; size <= 1000; ++size) {
    expect_bijection(size);
  }
  for (const std::uint64_t size : {4099U, 16381U, 16384U, 65537U, 104729U}) {
    expect_bijection(size);
  }
}

TEST(Permutation, LargestSizesStayInRange) {
  for (const std::uint64_t size : {~std::uint64_t{0}, (std::uint64_t{1} << 62U) + 1}) {
    EXPECT_LT(permuted_index(0, size, 1, 2), size);
    EXPECT_LT(permuted_index(size - 1, size, 1, 2), size);
    EXPECT_NE(permuted_index(0, size, 1, 2), permuted_index(size - 1, size, 1, 2));
  }
}

TEST(Permutation, KeyAndTweakGiveUnrelatedOrders) {
  constexpr std::uint64_t kSize = 1000;
  const auto base = permutation(kSize, 1, 0);
  for (const auto& other : {permutation(kSize, 2, 0),
                            permutation(kSize, 1, 1),
                            permutation(kSize, 1, std::uint64_t{1} << 32U),
                            permutation(kSize, (std::uint64_t{1} << 32U) + 1, 0)}) {
    std::uint64_t num_fixed = 0;
    for (std::size_t i = 0; i < kSize; ++i) {
      num_fixed += base[i] == other[i] ? 1 : 0;
    }
    // Two random permutations agree in a Poisson(1) number of places: more than 10 has odds of
    // 1e-8.
    EXPECT_LE(num_fixed, 10U);
  }
}

TEST(Permutation, EveryImageIsEquallyLikely) {
  // Over many keys each index goes to each place equally often: chi-squared with (size - 1)^2
  // degrees of freedom, whose mean is that number and whose variance twice it.
  constexpr std::uint64_t kSize = 23;
  constexpr std::uint64_t kKeys = 4000;
  std::vector<double> counts(kSize * kSize, 0);
  for (std::uint64_t key = 0; key < kKeys; ++key) {
    for (std::uint64_t i = 0; i < kSize; ++i) {
      ++counts[i * kSize + permuted_index(i, kSize, key, 0)];
    }
  }
  const double expected = static_cast<double>(kKeys) / kSize;
  double chi_squared = 0;
  for (const double count : counts) {
    chi_squared += (count - expected) * (count - expected) / expected;
  }
  const double degrees = (kSize - 1.0) * (kSize - 1.0);
  EXPECT_LT(std::abs(chi_squared - degrees), 5 * std::sqrt(2 * degrees));
}

TEST(Permutation, RefusesAnIndexOutside) {
  EXPECT_THROW(permuted_index(5, 5, 0, 0), ContractError);
  EXPECT_THROW(permuted_index(0, 0, 0, 0), ContractError);
}

}  // namespace
}  // namespace memphis
