// SPDX-License-Identifier: Apache-2.0
#include <nvtx3/nvToolsExt.h>
#include <spdlog/fmt/fmt.h>

#include "csrc/core/profiler_range.h"

namespace memphis {

void begin_profiler_range(const char* name, std::int64_t number) {
  if (number < 0) {
    nvtxRangePushA(name);
    return;
  }
  constexpr std::size_t kMost = 128;
  char text[kMost];  // nothing is allocated in a step
  const auto end = fmt::format_to_n(text, kMost - 1, "{} {}", name, number);
  *end.out = '\0';
  nvtxRangePushA(text);
}

void end_profiler_range() {
  nvtxRangePop();
}

}  // namespace memphis
