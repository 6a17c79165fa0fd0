// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <string>

#include "csrc/core/rng.h"
#include "tests/support/test_tensor.h"

namespace memphis::test {

// What no table lists, by the seed of the tests: another `name` draws other values.
class Draw {
 public:
  explicit Draw(const std::string& name) : rng_(test_seed(), name) {}

  // In [low, high].
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(rng_.word64(next_++) %
                                           static_cast<std::uint64_t>(high - low + 1));
  }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return *std::next(values.begin(), integer(0, static_cast<std::int64_t>(values.size()) - 1));
  }
  bool once_in(std::int64_t count) { return integer(1, count) == 1; }
  // In [low, high], every second time one of `edges` if that lies there.
  std::int64_t integer_or_edge(std::int64_t low,
                               std::int64_t high,
                               std::initializer_list<std::int64_t> edges) {
    const std::int64_t edge = one_of(edges);
    return once_in(2) && edge >= low && edge <= high ? edge : integer(low, high);
  }

 private:
  CounterRng rng_;
  std::uint64_t next_ = 0;
};

}  // namespace memphis::test
