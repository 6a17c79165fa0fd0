// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "csrc/core/error.h"

// Memory that is asked for before it is read.
namespace memphis::kernels::cpu {

constexpr std::int64_t kCacheLine = 64;

// Asks for rows of `width` elements that lie `stride` apart: strided rows of a line or two are what
// the processor does not foresee.
template <class T>
void ask_for_rows(const T* first, std::int64_t stride, std::int64_t count, std::int64_t width) {
  constexpr std::int64_t kLine = kCacheLine / static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t row = 0; row < count; ++row) {
    for (std::int64_t i = 0; i < width; i += kLine) {
      __builtin_prefetch(first + row * stride + i);
    }
  }
}

// What is read behind a product, and would be waited for line by line. The product asks for some of
// it at each of its blocks, as it is bound by arithmetic, and it is in the second-level cache then.
class Ahead {
 public:
  // Adds `count` elements from `first` on; twice at most.
  template <class T>
  void add(const T* first, std::int64_t count) {
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(T));
    require(num_runs_ < runs_.size(), "a product asks for two runs of memory at most");
    runs_[num_runs_++] = {.next = reinterpret_cast<const char*>(first),
                          .num_lines = (bytes + kCacheLine - 1) / kCacheLine};
  }

  std::int64_t num_lines() const { return runs_[0].num_lines + runs_[1].num_lines; }

  void ask(std::int64_t num_lines) {
    for (Run& run : runs_) {
      for (; num_lines > 0 && run.num_lines > 0; --num_lines, --run.num_lines) {
        constexpr int kToRead = 0;
        constexpr int kSecondLevel = 2;
        __builtin_prefetch(run.next, kToRead, kSecondLevel);
        run.next += kCacheLine;
      }
    }
  }

 private:
  struct Run {
    const char* next = nullptr;
    std::int64_t num_lines = 0;
  };
  std::array<Run, 2> runs_;
  std::size_t num_runs_ = 0;
};

}  // namespace memphis::kernels::cpu
