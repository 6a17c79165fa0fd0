// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/parallel.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
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

// Regions one after the other, short ones, of numbers of threads that grow and shrink: a thread that
// comes late to one must not take a chunk of the next, twice or with its body.
TEST(Parallel, RegionsDoNotRunIntoEachOther) {
  std::int64_t sum = 0;
  std::int64_t expected = 0;
  for (std::int64_t region = 0; region < 20000; ++region) {
    const NumThreads threads(static_cast<int>(2 + region % 3));
    const std::int64_t num_chunks = 2 + region % 5;
    std::atomic<std::int64_t> done = 0;
    parallel_chunks(num_chunks, [&](std::int64_t chunk) { done += region * 10 + chunk + 1; });
    sum += done;
    expected += num_chunks * region * 10 + num_chunks * (num_chunks + 1) / 2;
    ASSERT_EQ(sum, expected) << "region " << region;
  }
}

TEST(Parallel, CallersHaveTeamsOfTheirOwn) {
  std::vector<std::thread> callers;
  std::atomic<std::int64_t> count = 0;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      const NumThreads threads(3);
      for (int region = 0; region < 500; ++region) {
        parallel_chunks(7, [&](std::int64_t) { ++count; });
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  EXPECT_EQ(count, 3 * 500 * 7);
}

// A caller that ends takes its threads with it, also one that has just come out of a region.
TEST(Parallel, TeamsEndWithTheirCallers) {
  std::atomic<std::int64_t> count = 0;
  for (int caller = 0; caller < 3000; ++caller) {
    std::thread([&] {
      const NumThreads threads(3);
      parallel_chunks(3, [&](std::int64_t) { ++count; });
    }).join();
  }
  EXPECT_EQ(count, 3000 * 3);
}

// What scratch memory is handed out by: no two threads of a region have the same number.
TEST(Parallel, ThreadsOfARegionAreNumbered) {
  const NumThreads threads(4);
  std::mutex mutex;
  std::map<std::thread::id, int> indices;
  std::atomic<int> num_arrived = 0;
  parallel_chunks(4, [&](std::int64_t) {
    EXPECT_TRUE(team::is_inside());
    {
      const std::lock_guard lock(mutex);
      indices.emplace(std::this_thread::get_id(), team::thread_index());
    }
    // A thread that has one waits for the others to take theirs.
    for (++num_arrived; num_arrived < 4;) {
      std::this_thread::yield();
    }
  });
  EXPECT_FALSE(team::is_inside());
  ASSERT_EQ(indices.size(), 4U);
  EXPECT_EQ(indices.at(std::this_thread::get_id()), 0);
  std::set<int> numbers;
  for (const auto& [thread, index] : indices) {
    numbers.insert(index);
  }
  EXPECT_EQ(numbers, (std::set<int>{0, 1, 2, 3}));
}

TEST(Parallel, WaitingThreadsSpinAsOpenMpIsTold) {
  const std::int64_t by_default = team::num_spins(nullptr, nullptr);
  constexpr std::int64_t kForEver = std::numeric_limits<std::int64_t>::max();
  EXPECT_GT(by_default, 0);
  EXPECT_EQ(team::num_spins("passive", nullptr), 0);
  EXPECT_EQ(team::num_spins("PASSIVE", nullptr), 0);
  EXPECT_EQ(team::num_spins("active", nullptr), kForEver);
  EXPECT_EQ(team::num_spins("active", "0"), 0) << "the number holds where both are given";
  EXPECT_EQ(team::num_spins(nullptr, "12"), 12);
  EXPECT_EQ(team::num_spins(nullptr, "3k"), 3000);
  EXPECT_EQ(team::num_spins(nullptr, "2M"), 2000000);
  EXPECT_EQ(team::num_spins(nullptr, "9999999t"), kForEver);
  EXPECT_EQ(team::num_spins(nullptr, "infinity"), kForEver);
  EXPECT_EQ(team::num_spins(nullptr, "INFINITE"), kForEver);
  for (const char* wrong : {"", "x", "12x", "-1", "k", "1kk"}) {
    EXPECT_EQ(team::num_spins(nullptr, wrong), by_default) << wrong;
  }
  EXPECT_EQ(team::num_spins("lazy", nullptr), by_default);
}

TEST(Parallel, NestedCallsRunEveryChunk) {
  const NumThreads threads(4);
  std::atomic<int> count = 0;
  parallel_chunks(8, [&](std::int64_t) { parallel_chunks(8, [&](std::int64_t) { ++count; }); });
  EXPECT_EQ(count, 64);
}

}  // namespace
}  // namespace memphis
