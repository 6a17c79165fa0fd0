// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>

// When something of a run comes round.
namespace memphis {

// Each `every` steps; 0: never.
inline bool due(std::int64_t step, std::int64_t every) {
  return every > 0 && step % every == 0;
}

// On a clock that does not go backwards.
inline double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace memphis
