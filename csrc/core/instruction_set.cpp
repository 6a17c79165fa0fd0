// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/instruction_set.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include <processor_features.h>

namespace memphis {

std::string instruction_set() {
#define MEMPHIS_FEATURE(name) name,
  constexpr std::string_view kFeatures[] = {MEMPHIS_PROCESSOR_FEATURES(MEMPHIS_FEATURE) ""};
#undef MEMPHIS_FEATURE
  const auto has = [&](std::string_view name) {
    return std::find(std::begin(kFeatures), std::end(kFeatures), name) != std::end(kFeatures);
  };
  std::string result = "sse2";
  for (const char* wider : {"avx", "avx2", "avx512f"}) {
    if (has(wider)) {
      result = wider;
    }
  }
  return has("fma") ? result + ", fma" : result;
}

}  // namespace memphis
