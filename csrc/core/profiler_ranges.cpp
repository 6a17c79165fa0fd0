// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/profiler_range.h"

namespace memphis {

void ProfilerRanges::begin(Level level, const char* name, std::int64_t number) {
  end(level);
  begin_profiler_range(name, number);
  open_[static_cast<std::size_t>(level)] = true;
}

void ProfilerRanges::end(Level level) {
  for (std::size_t i = kLevels; i-- > static_cast<std::size_t>(level);) {
    if (open_[i]) {
      end_profiler_range();
      open_[i] = false;
    }
  }
}

}  // namespace memphis
