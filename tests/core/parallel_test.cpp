// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/parallel.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

namespace memphis {
namespace {

class NumThreads {
 public:
  explicit NumThreads(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  ~NumThreads() { omp_set_num_threads(before_); }
  NumThreads(const NumThreads&) = delete;
  NumThreads& operator=(const NumThreads&) = delete;

 private:
  int before_;
};

TEST(Parallel, EveryChunkRunsOnce) {
  for (const int num_threads : {1, 4}) {
    const NumThreads threads(num_threads);
    for (const std::int64_t num_chunks : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> counts(static_cast<std::size_t>(num_chunks));
      parallel_chunks(num_chunks, [&](std::int64_t i) { ++counts[static_cast<std::size_t>(i)]; });
      EXPECT_TRUE(std::all_of(counts.begin(), counts.end(), [](int n) { return n == 1; }));
    }
  }
}

TEST(Parallel, RangesCoverTheCountOnceInPiecesOfTheGrain) {
  const NumThreads threads(4);
  for (const std::int64_t count : {0, 1, 7, 8, 9, 100}) {
    std::vector<std::atomic<int>> counts(static_cast<std::size_t>(count));
    std::atomic<bool> fits = true;
    parallel_ranges(count, 8, [&](std::int64_t begin, std::int64_t end) {
      if (begin >= end || end - begin > 8) {
        fits = false;
      }
      for (std::int64_t i = begin; i < end; ++i) {
        ++counts[static_cast<std::size_t>(i)];
      }
    });
    EXPECT_TRUE(fits);
    EXPECT_TRUE(std::all_of(counts.begin(), counts.end(), [](int n) { return n == 1; }));
  }
}

// What ops do: one partial sum per range, added up in order. The cut depends on the count alone, so
// the bits do not depend on the number of threads.
float sum_of_partials(const std::vector<float>& values, int num_threads) {
  const NumThreads threads(num_threads);
  constexpr std::int64_t kGrain = 64;
  const auto count = static_cast<std::int64_t>(values.size());
  std::vector<float> partials(static_cast<std::size_t>((count + kGrain - 1) / kGrain), 0.0F);
  parallel_ranges(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      partials[static_cast<std::size_t>(begin / kGrain)] += values[static_cast<std::size_t>(i)];
    }
  });
  float sum = 0;
  for (const float partial : partials) {
    sum += partial;
  }
  return sum;
}

TEST(Parallel, BitsDoNotDependOnTheNumberOfThreads) {
  std::vector<float> values(10007);
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = 1.0F / static_cast<float>(i + 1);  // rounds at every addition
  }
  const float alone = sum_of_partials(values, 1);
  for (const int num_threads : {2, 3, 8}) {
    EXPECT_EQ(sum_of_partials(values, num_threads), alone);
  }
}

TEST(Parallel, AnExceptionReachesTheCaller) {
  for (const int num_threads : {1, 4}) {
    const NumThreads threads(num_threads);
    const auto fail_at_five = [](std::int64_t i) {
      if (i == 5) {
        throw std::runtime_error("chunk five");
      }
    };
    try {
      parallel_chunks(100, fail_at_five);
      ADD_FAILURE() << "threw nothing";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "chunk five");
    }
  }
}

TEST(Parallel, NestedCallsRunEveryChunk) {
  const NumThreads threads(4);
  std::atomic<int> count = 0;
  parallel_chunks(8, [&](std::int64_t) { parallel_chunks(8, [&](std::int64_t) { ++count; }); });
  EXPECT_EQ(count, 64);
}

}  // namespace
}  // namespace memphis
