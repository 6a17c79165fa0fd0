// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace memphis {

// A range of the calling thread that NVIDIA's profilers show (NVTX), within those that are open:
// "micro-batch 3", or the name alone where `number` is negative. In a build without CUDA nothing, and
// without a profiler a few nanoseconds each.
void begin_profiler_range(const char* name, std::int64_t number);
// Ends the innermost one.
void end_profiler_range();

// The ranges of one thread, one of each level within the one before: "step 21", "micro-batch 2",
// "backward 3". One that begins ends those of its level and within.
class ProfilerRanges {
 public:
  enum class Level : std::uint8_t { step, micro_batch, phase };

  void begin(Level level, const char* name, std::int64_t number);
  void end(Level level);

 private:
  static constexpr std::size_t kLevels = 3;
  std::array<bool, kLevels> open_{};
};

}  // namespace memphis
