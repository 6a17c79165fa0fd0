// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "csrc/comm/communicator.h"

namespace memphis {

// Of the ranks that give the same key: how many they are, and the sum of their values.
struct Sharing {
  std::int64_t num_ranks = 1;
  std::int64_t sum = 0;
};
// Those whose key is this rank's own. Every rank of the job calls.
Sharing sum_of_those_with(Communicator& all_host,
                          std::array<std::int64_t, 2> key,
                          std::int64_t value,
                          std::string_view name);

}  // namespace memphis
