// SPDX-License-Identifier: Apache-2.0
//
// Every kind of communicator against a plain loop over all ranks' inputs, which each rank computes
// for itself: an input is a function of rank and index. Results agree bit by bit, but for the sums
// of NCCL, whose order is its own: those are held to a bound on the error of any order.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/communicator.h"
#include "csrc/comm/gpu_of_rank.h"
#include "csrc/comm/nccl.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/threads.h"
#include "csrc/comm/together.h"
#include "tests/support/error_text.h"
#include "tests/support/ranks.h"
#include "tests/support/world_decorator.h"

namespace memphis {
namespace {

// Zero, one, odd, and more than a rank adds up at a time, whichever range of it is a rank's.
constexpr std::int64_t kLengths[] = {0, 1, 17, 24 * 1024 + 5};

struct Job {
  std::string name;
  int num_ranks;  // of threads; as many processes as mpirun started
  Device device = Device::cpu;
};

void PrintTo(const Job& job, std::ostream* out) {
  *out << job.name;
}

// Of the running test, for all of its ranks.
Stream g_stream;

// One rank whose groups are NCCL's all the same.
class NcclOfOne final : public test::WorldDecorator {
 public:
  using WorldDecorator::WorldDecorator;

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> /*ranks*/,
                                             Device device,
                                             int num_channels) override {
    auto host = make_solo(Device::cpu);
    return device == Device::cpu
               ? std::move(host)
               : make_nccl_communicator(std::move(axis), *host, activity(), num_channels);
  }
};

class ConformanceBase : public testing::TestWithParam<Job> {
 protected:
  void SetUp() override {
    const std::string reason =
        GetParam().device == Device::cpu ? std::string() : test::why_no_gpu_ranks();
    if (!reason.empty()) {
      GTEST_SKIP() << reason;
    }
    if (GetParam().device == Device::cuda) {
      World& world = test::process_world();
      use_own_gpu(*create_group_of_all(world), world.local_rank(), Device::cuda);
      gpu_stream_.emplace(Device::cuda);
      g_stream = gpu_stream_->view();
    }
  }
  void TearDown() override { g_stream = {}; }

  static void on_ranks(const std::function<void(World&)>& body) {
    const std::string& name = GetParam().name;
    if (name == "solo") {
      body(*make_solo_world());
    } else if (name == "nccl_of_one") {
      const std::unique_ptr<World> one = make_solo_world();
      NcclOfOne world(*one);
      body(world);
    } else if (name.find("processes") != std::string::npos) {
      try {
        body(test::process_world());
      } catch (const std::exception& error) {
        // The others wait for this rank, for ever if it only failed its test.
        test::process_world().abort(ExitCode::internal, error.what());
        throw;
      }
    } else {
      run_threads(GetParam().num_ranks, body);
    }
  }

 private:
  std::optional<OwnedStream> gpu_stream_;
};

std::vector<Job> host_jobs() {
  return {{"solo", 1},
          {"threads_2", 2},
          {"threads_3", 3},
          {"threads_4", 4},
          {"threads_7", 7},
          {"threads_24", 24},
          {"processes", 0}};
}

std::vector<Job> all_jobs() {
  std::vector<Job> jobs = host_jobs();
  jobs.push_back({"nccl_of_one", 1, Device::cuda});
  jobs.push_back({"nccl_processes", 0, Device::cuda});
  return jobs;
}

std::string name_of_job(const testing::TestParamInfo<Job>& info) {
  return info.param.name;
}

class Conformance : public ConformanceBase {};
INSTANTIATE_TEST_SUITE_P(, Conformance, testing::ValuesIn(all_jobs()), name_of_job);

// What groups of host memory alone promise.
class HostConformance : public ConformanceBase {};
INSTANTIATE_TEST_SUITE_P(, HostConformance, testing::ValuesIn(host_jobs()), name_of_job);

// Under mpirun.
class NcclConformance : public ConformanceBase {};
INSTANTIATE_TEST_SUITE_P(,
                         NcclConformance,
                         testing::Values(Job{"nccl_processes", 0, Device::cuda}),
                         name_of_job);

std::unique_ptr<Communicator> group_of_all(World& world) {
  return create_group_of_all(world, "test", g_stream.device);
}

// Sums of these round at nearly every addition, so that another order of ranks gives other bits.
template <class T>
T input(int rank, std::int64_t index) {
  const std::int64_t hash = (rank * 7919 + index * 104729 + rank * index * 31) % 2003 - 1001;
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(hash);
  } else {
    return static_cast<T>(static_cast<double>(hash) / (1.0 + rank % 5));
  }
}

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, bf16>, float, T>;

// The reduction of all ranks' inputs at `index`.
template <class T>
T reduced(int num_ranks, std::int64_t index, Reduce reduce = Reduce::sum) {
  auto result = static_cast<Acc<T>>(input<T>(0, index));
  for (int r = 1; r < num_ranks; ++r) {
    const auto value = static_cast<Acc<T>>(input<T>(r, index));
    result = static_cast<Acc<T>>(reduce == Reduce::max ? std::max(result, value) : result + value);
  }
  return static_cast<T>(result);
}

// A sum, and how far from it the one may be that is added up in another order. Each of n - 1
// additions changes a partial sum, which is at most the sum of the magnitudes so far, by half a
// unit in its last place: together at most ((1 + u)^(n - 1) - 1) times the sum of the magnitudes.
// One more where the result is rounded to T once, at the end of a sum in f32.
struct Sum {
  long double exact = 0;
  long double bound = 0;
};

template <class T>
Sum sum_of(int num_ranks, std::int64_t index) {
  constexpr int kDigits = std::is_same_v<T, bf16> ? 8 : std::numeric_limits<T>::digits;
  Sum sum;
  long double magnitudes = 0;
  for (int r = 0; r < num_ranks; ++r) {
    const auto value = static_cast<long double>(static_cast<Acc<T>>(input<T>(r, index)));
    sum.exact += value;
    magnitudes += std::abs(value);
  }
  const int num_roundings = num_ranks == 1 ? 0 : num_ranks;
  sum.bound = (std::pow(1 + std::ldexp(1.0L, -kDigits), num_roundings) - 1) * magnitudes;
  return sum;
}

// Elements and, behind them, some that no collective may touch. They are filled and judged here;
// between the two they lie on the test's device.
template <class T>
class Buffer {
 public:
  explicit Buffer(std::int64_t count) : values_(static_cast<std::size_t>(count + kGuards)) {
    std::memset(values_.data(), kPoison, values_.size() * sizeof(T));
  }
  // The inputs of a rank.
  Buffer(std::int64_t count, int rank) : Buffer(count) {
    for (std::int64_t i = 0; i < count; ++i) {
      (*this)[i] = input<T>(rank, i);
    }
  }

  std::int64_t count() const { return static_cast<std::int64_t>(values_.size()) - kGuards; }
  // To be written before a collective has it.
  T& operator[](std::int64_t i) {
    on_device_ = false;
    return values_[static_cast<std::size_t>(i)];
  }
  TensorView view() { return part(0, count()); }
  TensorView part(std::int64_t begin, std::int64_t length) {
    return {data() + begin, {length}, dtype_of<T>(), g_stream.device};
  }
  TensorView matrix(std::int64_t num_rows, std::int64_t num_columns) {
    return {data(), {num_rows, num_columns}, dtype_of<T>(), g_stream.device};
  }

  // Of an expected result: element i is the reduction of the inputs at `index`, as the test's
  // communicators promise it.
  void set_reduced(std::int64_t i, int num_ranks, std::int64_t index, Reduce reduce) {
    if constexpr (!std::is_integral_v<T>) {
      if (g_stream.device == Device::cuda && reduce == Reduce::sum) {
        sums_.resize(values_.size());
        sums_[static_cast<std::size_t>(i)] = sum_of<T>(num_ranks, index);
        return;
      }
    }
    (*this)[i] = reduced<T>(num_ranks, index, reduce);
  }

  // Fails the test unless the bits are those of `expected`, or a sum is within its bound.
  void expect(const Buffer& expected, const std::string& what) {
    download();
    ASSERT_EQ(values_.size(), expected.values_.size());
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const auto value = static_cast<double>(values_[i]);
      if (i < expected.sums_.size() && expected.sums_[i].has_value()) {
        const Sum& sum = *expected.sums_[i];
        if (!(std::abs(value - sum.exact) <= sum.bound)) {
          FAIL() << what << ": element " << i << " of " << count() << " is " << value << " and not "
                 << sum.exact << " give or take " << sum.bound;
        }
      } else if (std::memcmp(&values_[i], &expected.values_[i], sizeof(T)) != 0) {
        FAIL() << what << ": element " << i << " of " << count() << " is " << value << " and not "
               << static_cast<double>(expected.values_[i]);
      }
    }
  }

 private:
  std::size_t num_bytes() const { return values_.size() * sizeof(T); }

  T* data() {
    if (g_stream.device == Device::cpu) {
      return values_.data();
    }
    if (!device_memory_) {
      device_memory_.reset(device_allocate(num_bytes(), Device::cuda));
    }
    if (!on_device_) {
      device_copy(device_memory_.get(), values_.data(), num_bytes(), g_stream);
      on_device_ = true;
    }
    return static_cast<T*>(device_memory_.get());
  }

  void download() {
    if (on_device_) {
      synchronize(g_stream);  // a copy to memory that is not pinned would wait unwatched
      device_copy(values_.data(), device_memory_.get(), num_bytes(), g_stream);
      synchronize(g_stream);
    }
  }

  struct Free {
    void operator()(void* memory) const { device_free(memory, Device::cuda); }
  };

  static constexpr std::int64_t kGuards = 3;
  static constexpr int kPoison = 0x5B;
  std::vector<T> values_;
  std::vector<std::optional<Sum>> sums_;  // by element
  std::unique_ptr<void, Free> device_memory_;
  bool on_device_ = false;  // is what values_ are
};

template <class T>
std::string describe_case(const Communicator& group, std::int64_t length, const std::string& more) {
  return "rank " + std::to_string(group.rank()) + " of " + std::to_string(group.size()) + ", " +
         std::string(name_of(dtype_of<T>())) + ", length " + std::to_string(length) + more;
}

// check.template operator()<T>() for the dtypes of a collective.
template <class Check>
void for_each_dtype(Check check) {
  check.template operator()<double>();
  check.template operator()<float>();
  check.template operator()<bf16>();
  check.template operator()<std::int64_t>();
  check.template operator()<std::int32_t>();
}

template <class T>
void check_all_reduce(Communicator& group, std::int64_t length, Reduce reduce, bool in_place) {
  Buffer<T> x(length, group.rank());
  Buffer<T> y(length);
  group.run(AllReduce{.y = in_place ? x.view() : y.view(), .x = x.view(), .reduce = reduce},
            "test.all_reduce",
            g_stream);
  Buffer<T> expected(length);
  for (std::int64_t i = 0; i < length; ++i) {
    expected.set_reduced(i, group.size(), i, reduce);
  }
  (in_place ? x : y)
      .expect(expected, describe_case<T>(group, length, in_place ? ", in place" : ""));
}

TEST_P(Conformance, AllReduce) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    for_each_dtype([&]<class T>() {
      for (const std::int64_t length : kLengths) {
        for (const Reduce reduce : {Reduce::sum, Reduce::max}) {
          check_all_reduce<T>(*group, length, reduce, false);
          check_all_reduce<T>(*group, length, reduce, true);
        }
      }
    });
  });
}

template <class T>
void check_all_gather(Communicator& group,
                      std::int64_t length,
                      std::int64_t blocks,
                      bool in_place) {
  const int n = group.size();
  Buffer<T> x(blocks * length, group.rank());
  Buffer<T> y(n * blocks * length);
  TensorView operand = x.view();
  if (in_place) {
    operand = y.part(group.rank() * length, length);
    for (std::int64_t i = 0; i < length; ++i) {
      y[group.rank() * length + i] = x[i];
    }
  }
  group.run(AllGather{.y = y.view(), .x = operand, .num_blocks = blocks}, "test.gather", g_stream);
  Buffer<T> expected(n * blocks * length);
  for (std::int64_t b = 0; b < blocks; ++b) {
    for (int r = 0; r < n; ++r) {
      for (std::int64_t i = 0; i < length; ++i) {
        expected[(b * n + r) * length + i] = input<T>(r, b * length + i);
      }
    }
  }
  y.expect(expected, describe_case<T>(group, length, ", blocks " + std::to_string(blocks)));
}

TEST_P(Conformance, AllGather) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    for_each_dtype([&]<class T>() {
      for (const std::int64_t length : kLengths) {
        check_all_gather<T>(*group, length, 1, false);
        check_all_gather<T>(*group, length, 1, true);
        check_all_gather<T>(*group, length, 3, false);
      }
    });
  });
}

template <class T>
void check_reduce_scatter(Communicator& group,
                          std::int64_t length,
                          std::int64_t blocks,
                          bool in_place) {
  const int n = group.size();
  const int rank = group.rank();
  Buffer<T> x(n * blocks * length, rank);
  Buffer<T> y(blocks * length);
  group.run(ReduceScatter{.y = in_place ? x.part(rank * length, length) : y.view(),
                          .x = x.view(),
                          .num_blocks = blocks},
            "test.scatter",
            g_stream);
  Buffer<T> expected(blocks * length);
  Buffer<T> expected_x(n * blocks * length, rank);
  for (std::int64_t b = 0; b < blocks; ++b) {
    for (std::int64_t i = 0; i < length; ++i) {
      const std::int64_t index = (b * n + rank) * length + i;
      if (in_place) {
        expected_x.set_reduced(index, n, index, Reduce::sum);
      } else {
        expected.set_reduced(b * length + i, n, index, Reduce::sum);
      }
    }
  }
  const std::string what = describe_case<T>(group, length, ", blocks " + std::to_string(blocks));
  y.expect(expected, what);
  x.expect(expected_x, what + ", x");
}

TEST_P(Conformance, ReduceScatter) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    for_each_dtype([&]<class T>() {
      for (const std::int64_t length : kLengths) {
        check_reduce_scatter<T>(*group, length, 1, false);
        check_reduce_scatter<T>(*group, length, 1, true);
        check_reduce_scatter<T>(*group, length, 3, false);
      }
    });
  });
}

TEST_P(Conformance, Broadcast) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    for_each_dtype([&]<class T>() {
      for (const std::int64_t length : kLengths) {
        for (const int root : {0, group->size() - 1}) {
          Buffer<T> x(length, group->rank());
          group->run(Broadcast{.x = x.view(), .root = root}, "test.broadcast", g_stream);
          x.expect(Buffer<T>(length, root), describe_case<T>(*group, length, ""));
        }
      }
    });
  });
}

// Rows that rank `from` sends to rank `to`: none at all for a scale of 0, else none from every
// third rank, none to another, and uneven numbers between the rest.
std::int64_t num_rows(int from, int to, std::int64_t scale) {
  return from % 3 == 2 || to % 4 == 3 ? 0 : (from * 7 + to * 3 + 1) % 5 * scale;
}

std::vector<std::int64_t> rows_from(int rank, int num_ranks, std::int64_t scale) {
  std::vector<std::int64_t> rows;
  for (int to = 0; to < num_ranks; ++to) {
    rows.push_back(num_rows(rank, to, scale));
  }
  return rows;
}

std::vector<std::int64_t> rows_to(int rank, int num_ranks, std::int64_t scale) {
  std::vector<std::int64_t> rows;
  for (int from = 0; from < num_ranks; ++from) {
    rows.push_back(num_rows(from, rank, scale));
  }
  return rows;
}

std::int64_t total(const std::vector<std::int64_t>& rows) {
  return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
}

template <class T>
Buffer<T> expected_rows(
    int rank, int n, std::int64_t scale, std::int64_t width, std::int64_t spare) {
  Buffer<T> expected((total(rows_to(rank, n, scale)) + spare) * width);
  std::int64_t at = 0;
  for (int from = 0; from < n; ++from) {
    std::int64_t begin = 0;
    for (int to = 0; to < rank; ++to) {
      begin += num_rows(from, to, scale) * width;
    }
    for (std::int64_t i = 0; i < num_rows(from, rank, scale) * width; ++i) {
      expected[at++] = input<T>(from, begin + i);
    }
  }
  return expected;
}

template <class T>
void check_all_to_all(Communicator& group, std::int64_t scale, std::int64_t width) {
  constexpr std::int64_t kSpare = 2;  // rows that x and y hold beyond those that move
  const int n = group.size();
  const std::vector<std::int64_t> send_rows = rows_from(group.rank(), n, scale);
  const std::vector<std::int64_t> recv_rows = rows_to(group.rank(), n, scale);
  const std::int64_t num_x = total(send_rows) + kSpare;
  const std::int64_t num_y = total(recv_rows) + kSpare;
  Buffer<T> x(num_x * width, group.rank());
  Buffer<T> y(num_y * width);
  group.run(AllToAll{.y = y.matrix(num_y, width),
                     .x = x.matrix(num_x, width),
                     .send_rows = send_rows,
                     .recv_rows = recv_rows},
            "test.all_to_all",
            g_stream);
  y.expect(expected_rows<T>(group.rank(), n, scale, width, kSpare),
           describe_case<T>(group, width, ", scale " + std::to_string(scale)));
}

TEST_P(Conformance, AllToAll) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    for_each_dtype([&]<class T>() {
      for (const std::int64_t scale : {0, 1, 200}) {
        for (const std::int64_t width : {1, 5}) {
          check_all_to_all<T>(*group, scale, width);
        }
      }
    });
  });
}

TEST_P(Conformance, StartedTogetherEndInOrder) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    const int n = group->size();
    const int rank = group->rank();
    constexpr std::int64_t kLength = 5000;
    for (int repeat = 0; repeat < 3; ++repeat) {
      Buffer<float> sums(kLength, rank);
      Buffer<bf16> gathered(n * kLength);
      Buffer<bf16> part(kLength, rank);
      Buffer<std::int64_t> words(kLength, rank);
      Buffer<double> rows_x(total(rows_from(rank, n, 3)), rank);
      Buffer<double> rows_y(total(rows_to(rank, n, 3)));
      std::vector<std::unique_ptr<Communicator::Work>> works;
      works.push_back(group->start(AllReduce{sums.view(), sums.view()}, "test.a", g_stream));
      works.push_back(group->start(AllGather{gathered.view(), part.view()}, "test.b", g_stream));
      works.push_back(group->start(Broadcast{words.view(), n - 1}, "test.c", g_stream));
      {
        // Gone before the work is done.
        const std::vector<std::int64_t> send_rows = rows_from(rank, n, 3);
        const std::vector<std::int64_t> recv_rows = rows_to(rank, n, 3);
        works.push_back(group->start(
            AllToAll{rows_y.view(), rows_x.view(), send_rows, recv_rows}, "test.d", g_stream));
      }
      check_all_reduce<double>(*group, kLength, Reduce::sum, true);  // queues behind them
      while (!works.empty()) {
        works.back()->wait(g_stream);
        works.pop_back();
      }
      Buffer<float> expected_sums(kLength);
      for (std::int64_t i = 0; i < kLength; ++i) {
        expected_sums.set_reduced(i, n, i, Reduce::sum);
      }
      Buffer<bf16> expected_gathered(n * kLength);
      for (std::int64_t i = 0; i < n * kLength; ++i) {
        expected_gathered[i] = input<bf16>(static_cast<int>(i / kLength), i % kLength);
      }
      sums.expect(expected_sums, "sums");
      gathered.expect(expected_gathered, "gathered");
      words.expect(Buffer<std::int64_t>(kLength, n - 1), "words");
      rows_y.expect(expected_rows<double>(rank, n, 3, 1, 0), "rows");
    }
  });
}

// Of several dtypes and both kinds, one of them of nothing, in one call.
TEST_P(Conformance, SumsTogetherAreThoseApart) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    const int n = group->size();
    const int rank = group->rank();
    for (const std::int64_t length : kLengths) {
      Buffer<float> numbers(length, rank);
      Buffer<std::int32_t> counts(7, rank);
      Buffer<bf16> nothing(0, rank);
      Buffer<double> pieces(n * length, rank);
      std::unique_ptr<Communicator::Work> work;
      {
        // Gone before the work is done.
        const std::vector<memphis::Sum> parts = {
            AllReduce{.y = numbers.view(), .x = numbers.view()},
            AllReduce{.y = counts.view(), .x = counts.view(), .reduce = Reduce::max},
            AllReduce{.y = nothing.view(), .x = nothing.view()},
            ReduceScatter{.y = pieces.part(rank * length, length), .x = pieces.view()}};
        work = group->start(Sums{.parts = parts}, "test.sums", g_stream);
      }
      work->wait(g_stream);
      Buffer<float> expected_numbers(length);
      Buffer<double> expected_pieces(n * length, rank);
      for (std::int64_t i = 0; i < length; ++i) {
        expected_numbers.set_reduced(i, n, i, Reduce::sum);
        expected_pieces.set_reduced(rank * length + i, n, rank * length + i, Reduce::sum);
      }
      Buffer<std::int32_t> expected_counts(7);
      for (std::int64_t i = 0; i < 7; ++i) {
        expected_counts.set_reduced(i, n, i, Reduce::max);
      }
      numbers.expect(expected_numbers, describe_case<float>(*group, length, ", together"));
      counts.expect(expected_counts, "counts");
      nothing.expect(Buffer<bf16>(0), "nothing");
      pieces.expect(expected_pieces, describe_case<double>(*group, length, ", pieces"));
    }
    group->run(Sums{.parts = {}}, "test.none", g_stream);
  });
}

TEST_P(Conformance, AWorkThatNobodyWaitsForIsDoneWhenItIsGone) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    Buffer<float> x(1000, group->rank());
    group->start(Broadcast{x.view(), 0}, "test.broadcast", g_stream).reset();
    x.expect(Buffer<float>(1000, 0), "x");
  });
}

// Rows and columns of the ranks, as of a mesh, and twice the same group.
TEST_P(Conformance, GroupsAreIndependent) {
  on_ranks([](World& world) {
    const int n = world.size();
    std::vector<int> alike;
    for (int r = world.rank() % 2; r < n; r += 2) {
      alike.push_back(r);
    }
    const int first = world.rank() - world.rank() % 2;
    std::vector<int> pair = {first};
    if (first + 1 < n) {
      pair.push_back(first + 1);
    }
    const auto one = world.create_group("alike", alike, g_stream.device);
    const auto again = world.create_group("alike", alike, g_stream.device);
    const auto other = world.create_group("pair", pair, g_stream.device);
    const auto all = group_of_all(world);
    Buffer<float> x(3000, one->rank());
    Buffer<float> y(3000, again->rank());
    {
      const auto work = one->start(AllReduce{x.view(), x.view()}, "test.x", g_stream);
      const auto work_again = again->start(AllReduce{y.view(), y.view()}, "test.y", g_stream);
      check_all_reduce<float>(*other, 3000, Reduce::sum, false);
      check_all_gather<bf16>(*all, 100, 3, false);
      work_again->wait(g_stream);
      work->wait(g_stream);
    }
    Buffer<float> expected(3000);
    for (std::int64_t i = 0; i < 3000; ++i) {
      expected.set_reduced(i, one->size(), i, Reduce::sum);
    }
    x.expect(expected, "x");
    y.expect(expected, "y");
  });
}

void expect_refused(Communicator& group, const Collective& collective, const std::string& problem) {
  const std::string where =
      " (rank " + std::to_string(group.rank()) + " of the " + std::to_string(group.size()) + " ";
  const std::string run_text =
      test::error_text<ContractError>([&] { group.run(collective, "test.op", g_stream); });
  EXPECT_EQ(run_text.rfind("test.op: " + problem + where, 0), 0U) << run_text;
  EXPECT_TRUE(test::follows_grammar(run_text));
  EXPECT_EQ(test::error_text<ContractError>([&] { group.start(collective, "test.op", g_stream); }),
            run_text);
}

TEST_P(Conformance, WrongOperandsAreRefused) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    const std::int64_t n = group->size();
    const std::string ranks = std::to_string(n);
    Buffer<float> x(6 * n);
    Buffer<float> y(6 * n);
    Buffer<bf16> other(6 * n);
    Buffer<std::uint8_t> bytes(6 * n);
    const Device here = g_stream.device;
    const Device there = here == Device::cpu ? Device::cuda : Device::cpu;
    const TensorView elsewhere(x.view().data, {6 * n}, DType::f32, there);
    const std::string count = std::to_string(6 * n);

    expect_refused(*group, AllReduce{y.view(), {}}, "an operand is absent");
    expect_refused(*group, AllReduce{y.view(), other.view()}, "y is f32 and x is bf16");
    expect_refused(*group,
                   AllReduce{y.view(), elsewhere},
                   "y is on " + std::string(name_of(here)) + ", x on " +
                       std::string(name_of(there)) + ", the stream on " +
                       std::string(name_of(here)));
    expect_refused(*group, AllReduce{bytes.view(), bytes.view()}, "u8 is no dtype of a collective");
    expect_refused(*group, AllReduce{y.part(0, 5), x.view()}, "y has 5 elements and x " + count);
    const std::vector<memphis::Sum> parts = {AllReduce{y.view(), x.view()},
                                             AllReduce{y.part(0, 5), x.view()}};
    expect_refused(*group, Sums{.parts = parts}, "y has 5 elements and x " + count);
    expect_refused(*group,
                   AllGather{y.view(), x.part(0, 5)},
                   count + " elements are not " + ranks + " times 5");
    expect_refused(*group, AllGather{y.view(), x.part(0, 6), 4}, "6 elements are not 4 blocks");
    expect_refused(*group, AllGather{y.view(), x.part(0, 6), 0}, "6 elements are not 0 blocks");
    expect_refused(*group,
                   ReduceScatter{y.part(0, 5), x.view()},
                   count + " elements are not " + ranks + " times 5");
    expect_refused(*group, ReduceScatter{y.part(0, 6), x.view(), 4}, "6 elements are not 4 blocks");
    expect_refused(*group, Broadcast{x.view(), -1}, "root is -1");
    expect_refused(*group, Broadcast{x.view(), group->size()}, "root is " + ranks);

    const std::vector<std::int64_t> rows(static_cast<std::size_t>(n), 1);
    const std::vector<std::int64_t> none;
    std::vector<std::int64_t> negative = rows;
    negative.front() = -2;
    std::vector<std::int64_t> many = rows;
    many.front() = 6 * n + 1;
    std::vector<std::int64_t> to_itself = rows;
    to_itself[static_cast<std::size_t>(group->rank())] = 2;
    expect_refused(*group,
                   AllToAll{y.matrix(3 * n, 2), x.matrix(2 * n, 3), rows, rows},
                   "a row of y has 8 bytes and one of x 12");
    expect_refused(*group, AllToAll{y.view(), x.view(), none, rows}, "send_rows has 0 entries");
    expect_refused(*group, AllToAll{y.view(), x.view(), rows, negative}, "recv_rows has -2");
    expect_refused(*group,
                   AllToAll{y.view(), x.view(), many, rows},
                   "send_rows is " + std::to_string(7 * n) + " rows of a tensor of " + count);
    expect_refused(*group,
                   AllToAll{y.view(), x.view(), to_itself, rows},
                   "2 rows go to this rank itself and 1 come from it");
  });
}

TEST_P(HostConformance, UnequalSizesAreRefused) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    if (group->size() == 1) {
      return;
    }
    const std::int64_t length = group->rank() == 0 ? 9 : 8;
    Buffer<float> x(length, group->rank());
    Buffer<float> y(length * group->size());
    const std::string text = test::error_text<ContractError>([&] {
      group->run(AllGather{y.view(), x.view()}, "test.gather", g_stream);
    });
    EXPECT_NE(text.find("test.gather: rank "), std::string::npos) << text;
    EXPECT_NE(text.find("36"), std::string::npos) << text;
    EXPECT_NE(text.find("32"), std::string::npos) << text;
    EXPECT_TRUE(test::follows_grammar(text));
  });
}

// A receive of a pipeline is started a step ahead: a peer that sends after the limit has not hung
// as long as this rank has other things to do.
TEST_P(HostConformance, WorkUnderWayIsNoHangWhileTheRankWorks) {
  on_ranks([](World& world) {
    Activity& activity = world.activity();
    const HangLimits generous = activity.limits();
    const auto group = group_of_all(world);
    const auto other = create_group_of_all(world, "other", Device::cpu);
    const int root = group->size() - 1;
    const auto meet_elsewhere = [&] {
      std::int64_t one = 1;
      const TensorView operand(&one, {1}, DType::i64, Device::cpu);
      other->run(AllReduce{operand, operand}, "test.meet", {});
    };
    Buffer<float> x(100, group->rank());
    if (group->rank() != root) {
      HangLimits short_limit = generous;
      short_limit.hang_seconds = 0.1;
      activity.set_limits(short_limit);
      const auto work = group->start(Broadcast{x.view(), root}, "test.broadcast", g_stream);
      std::this_thread::sleep_for(std::chrono::milliseconds(1500));
      activity.set_limits(generous);
      meet_elsewhere();
      work->wait(g_stream);
    } else {
      meet_elsewhere();
      group->run(Broadcast{x.view(), root}, "test.broadcast", g_stream);
    }
    x.expect(Buffer<float>(100, root), "x");
  });
}

TEST_P(HostConformance, SeveralRanksOnGpusAreRefused) {
  on_ranks([](World& world) {
    const bool processes_can = has_nccl() && device_available(Device::cuda);
    if (world.size() == 1 || (GetParam().name == "processes" && processes_can)) {
      return;
    }
    const std::string text =
        test::error_text<PreflightError>([&] { create_group_of_all(world, "test", Device::cuda); });
    EXPECT_TRUE(test::follows_grammar(text));
    EXPECT_NE(text.find("use run.device cpu"), std::string::npos) << text;
  });
}

// As groups of more than kNcclRanksPerId ranks are made.
TEST_P(NcclConformance, RanksMayMeetAtSeveralIds) {
  on_ranks([](World& world) {
    const auto host = create_group_of_all(world, "host", Device::cpu);
    for (const int ranks_per_id : {1, 2, 3}) {
      const auto group = make_nccl_communicator("test", *host, world.activity(), 4, ranks_per_id);
      check_all_gather<float>(*group, 1000, 1, false);
    }
  });
}

// The stream of the collective is not the one that waits for it.
TEST_P(NcclConformance, AnotherStreamMayWaitForAResult) {
  on_ranks([](World& world) {
    const auto group = group_of_all(world);
    constexpr std::int64_t kLength = std::int64_t{1} << 20;
    Buffer<float> x(kLength, group->rank());
    const TensorView operand = x.view();
    const OwnedStream other(Device::cuda);
    std::vector<float> result(static_cast<std::size_t>(kLength));
    const auto work =
        group->start(Broadcast{operand, group->size() - 1}, "test.broadcast", g_stream);
    work->wait(other.view());
    synchronize(other.view());
    device_copy(result.data(), operand.data, operand.bytes(), other.view());
    synchronize(other.view());
    for (std::int64_t i = 0; i < kLength; ++i) {
      ASSERT_EQ(result[static_cast<std::size_t>(i)], input<float>(group->size() - 1, i)) << i;
    }
  });
}

// Kernels whose blocks stay for their whole launch are put beside it with fewer blocks.
TEST_P(NcclConformance, WhatIsUnderWayHoldsMultiprocessorsUntilItIsWaitedFor) {
  on_ranks([](World& world) {
    const auto host = create_group_of_all(world, "host", Device::cpu);
    constexpr int kChannels = 8;
    const auto group = make_nccl_communicator("test", *host, world.activity(), kChannels);
    const std::int64_t& held = *g_stream.held_elsewhere;
    EXPECT_EQ(held, 0);
    constexpr std::int64_t kLength = std::int64_t{1} << 18;  // 1 MiB, for more channels than 8
    Buffer<float> large(kLength, group->rank());
    Buffer<float> small(1, group->rank());
    const TensorView x = large.view();
    const TensorView one = small.view();
    const auto sum = [&](const TensorView& of) {
      return group->start(AllReduce{.y = of, .x = of}, "test.sum", g_stream);
    };
    auto first = sum(one);
    EXPECT_EQ(held, 1);
    auto second = sum(x);
    EXPECT_EQ(held, kChannels);
    auto third = sum(one);
    EXPECT_EQ(held, kChannels);  // one comes after the other
    second->wait(g_stream);
    first->wait(g_stream);
    first->wait(g_stream);
    EXPECT_EQ(held, kChannels);
    third.reset();
    EXPECT_EQ(held, 0);
    // A receiver may be there long before the sender, who finds it there.
    const bool sends = group->rank() == 0;
    const auto message = group->start(Broadcast{x, 0}, "test.message", g_stream);
    EXPECT_EQ(held, sends ? 0 : kChannels);
    message->wait(g_stream);
    EXPECT_EQ(held, 0);
    group->run(AllReduce{.y = x, .x = x}, "test.sum", g_stream);
    EXPECT_EQ(held, 0);
  });
}

// Messages between two ranks, as a pipeline's stages exchange them: a broadcast of its own each.
class Messages {
 public:
  static constexpr std::int64_t kLength = 24 * 1024 + 5;

  // `root` sends; what it sends is another message's for each.
  Messages(Communicator& group, int count, int root) : group_(group), root_(root) {
    for (int i = 0; i < count; ++i) {
      buffers_.emplace_back(kLength, group.rank() * kMost + i);
    }
    for (Buffer<float>& buffer : buffers_) {
      buffer.view();  // on the device before any message is under way
    }
  }

  void start() {
    for (Buffer<float>& buffer : buffers_) {
      works_.push_back(group_.start(Broadcast{buffer.view(), root_}, "test.message", g_stream));
    }
  }

  void wait_for(std::size_t i) { works_[i]->wait(g_stream); }

  // All of them, in an order of this rank's own, each of which is to be there once it was waited
  // for.
  void wait() {
    const std::size_t count = works_.size();
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t next = (i * 3 + 5 * static_cast<std::size_t>(group_.rank())) % count;
      wait_for(next);
      expect(next);
    }
    works_.clear();
  }

  void expect(std::size_t i) {
    buffers_[i].expect(Buffer<float>(kLength, root_ * kMost + static_cast<int>(i)),
                       "message " + std::to_string(i));
  }

 private:
  static constexpr int kMost = 100;
  Communicator& group_;
  int root_;
  std::vector<Buffer<float>> buffers_;
  std::vector<std::unique_ptr<Communicator::Work>> works_;  // first to go
};

// This rank and its neighbour; null for one that has none.
std::unique_ptr<Communicator> group_of_pair(World& world) {
  const int first = world.rank() - world.rank() % 2;
  return first + 1 < world.size()
             ? world.create_group("pair", std::array{first, first + 1}, g_stream.device)
             : nullptr;
}

// The first broadcast connects the ranks, and so waits for them.
void connect(Communicator& group) {
  Buffer<float> x(1);
  group.run(Broadcast{x.view(), 0}, "test.connect", g_stream);
  synchronize(g_stream);
}

void meet(Communicator& host) {
  std::int64_t one = 1;
  const TensorView operand(&one, {1}, DType::i64, Device::cpu);
  host.run(AllReduce{operand, operand}, "test.meet", {});
  EXPECT_EQ(one, host.size());
}

// `early` comes first, and does other work before the other one comes.
void expect_messages(Communicator& group, Communicator& host, int early, int root) {
  constexpr int kNumMessages = 8;
  Messages messages(group, kNumMessages, root);
  Buffer<float> x(1000, group.rank());
  Buffer<float> y(1000);
  // Who gives memory back waits for all that is under way on the GPU, and who takes some may.
  const AllReduce other_work = {.y = y.view(), .x = x.view(), .reduce = Reduce::sum};
  if (group.rank() != early) {
    meet(host);
  }
  messages.start();
  make_solo(Device::cuda)->run(other_work, "test.other", g_stream);
  y.expect(Buffer<float>(1000, group.rank()), "other work");
  if (group.rank() == early) {
    meet(host);
  }
  messages.wait();
}

// Of a pair of the job's ranks, of which the first comes early; the others come to no message.
void expect_messages_of_pair(World& world, int root) {
  const auto host = create_group_of_all(world, "host", Device::cpu);
  const auto group = group_of_pair(world);
  if (group == nullptr) {
    meet(*host);
    return;
  }
  connect(*group);
  expect_messages(*group, *host, 0, root);
}

TEST_P(NcclConformance, AReceiveMayBeStartedLongBeforeItsSend) {
  on_ranks([](World& world) { expect_messages_of_pair(world, 1); });
}

TEST_P(NcclConformance, ASendMayBeStartedLongBeforeItsReceive) {
  on_ranks([](World& world) { expect_messages_of_pair(world, 0); });
}

// Each rank's receives are started before its sends, which on the other rank are what comes first
// of that communicator.
TEST_P(NcclConformance, TwoGroupsMayBeUsedInOppositeOrders) {
  on_ranks([](World& world) {
    const auto down = group_of_pair(world);
    const auto up = group_of_pair(world);
    if (down == nullptr) {
      return;
    }
    connect(*down);
    connect(*up);
    for (int repeat = 0; repeat < 5; ++repeat) {
      Messages sent(down->rank() == 0 ? *down : *up, 3, down->rank());
      Messages received(down->rank() == 0 ? *up : *down, 3, 1 - down->rank());
      received.start();
      sent.start();
      received.wait();
      sent.wait();
    }
  });
}

// Rank 1 goes while the others wait for what it has not sent. The wait throws: it does not let them
// on to memory that nothing has come to. Of a process that fails a GPU's NCCL may hear nothing.
TEST_P(NcclConformance, AWaitForWhatNeverComesThrows) {
  on_ranks([](World& world) {
    if (world.size() == 1 || !device_info(Device::cuda).simulated) {
      return;
    }
    const auto host = create_group_of_all(world, "host", Device::cpu);
    Buffer<float> x(1000, world.rank());
    const auto fail = [&] {
      const auto group = group_of_all(world);
      connect(*group);
      if (world.rank() == 1) {
        meet(*host);
        throw std::runtime_error("this rank fails");
      }
      const auto work = group->start(Broadcast{x.view(), 1}, "test.lonely", g_stream);
      meet(*host);
      work->wait(g_stream);
    };
    if (world.rank() == 1) {
      EXPECT_EQ(test::error_text<std::runtime_error>(fail), "this rank fails");
    } else {
      const std::string text = test::error_text<CommunicationError>(fail);
      EXPECT_EQ(text.rfind("test.lonely (test rank ", 0), 0U) << text;
      EXPECT_NE(text.find(" is gone while rank "), std::string::npos) << text;
      EXPECT_TRUE(test::follows_grammar(text)) << text;
    }
    meet(*host);
  });
}

// Rank 0 has work under way to which the others never come. All fail, and none waits for ever.
TEST_P(NcclConformance, AnExceptionGivesUpWhatIsUnderWay) {
  on_ranks([](World& world) {
    if (world.size() == 1) {
      return;
    }
    const auto host = create_group_of_all(world, "host", Device::cpu);
    const auto outer = group_of_all(world);
    Buffer<float> x(1000, world.rank());
    const auto fail = [&] {
      const auto group = group_of_all(world);
      // Connects the ranks: the next one is under way as soon as start() returns.
      group->run(AllReduce{x.view(), x.view()}, "test.first", g_stream);
      synchronize(g_stream);
      if (world.rank() == 0) {
        const auto work = group->start(AllReduce{x.view(), x.view()}, "test.lonely", g_stream);
        throw std::runtime_error("this rank fails");
      }
      throw std::runtime_error("this rank fails");
    };
    EXPECT_EQ(test::error_text<std::runtime_error>(fail), "this rank fails");
    // All communicators of a process go together.
    const std::string text = test::error_text<CommunicationError>([&] {
      outer->run(AllReduce{x.view(), x.view()}, "test.after", g_stream);
    });
    EXPECT_NE(text.find("was given up (this rank failed)"), std::string::npos) << text;
    EXPECT_TRUE(test::follows_grammar(text));
    std::int64_t one = 1;
    host->run(AllReduce{TensorView(&one, {1}, DType::i64, Device::cpu),
                        TensorView(&one, {1}, DType::i64, Device::cpu)},
              "test.still_there",
              {});
    EXPECT_EQ(one, world.size());
  });
}

class ThreadRanks : public testing::TestWithParam<int> {};

INSTANTIATE_TEST_SUITE_P(, ThreadRanks, testing::Values(2, 3, 7, 24));

// Ends a job by rank 1, and expects that its exception is the one that comes out.
void expect_rank_one_ends_it(
    int num_ranks, const std::function<void(World&, const std::function<void()>&)>& body) {
  const std::string text = test::error_text<std::runtime_error>([&] {
    run_threads(num_ranks, [&](World& world) {
      body(world, [&] {
        if (world.rank() == 1) {
          throw std::runtime_error("rank one fails");
        }
      });
    });
  });
  EXPECT_EQ(text, "rank one fails");
}

TEST_P(ThreadRanks, AnExceptionEndsOthersThatRun) {
  expect_rank_one_ends_it(GetParam(), [](World& world, const auto& fail) {
    const auto group = group_of_all(world);
    check_all_reduce<float>(*group, 100, Reduce::sum, false);
    fail();
    const std::string text = test::error_text<CommunicationError>(
        [&] { check_all_reduce<float>(*group, 100, Reduce::sum, false); });
    EXPECT_EQ(text,
              "test.all_reduce was given up (rank 1 of " + std::to_string(world.size()) + " on " +
                  host_name() +
                  ", start, after test.all_reduce of the test group: rank one fails); see that "
                  "rank's message");
  });
}

TEST(Ranks, ARankThatDoesNotComeIsNamed) {
  // Rank 2 alone loses patience, and comes once rank 0 stands there: however slow the two are, it
  // is rank 1 that is missing.
  std::atomic<const Activity*> first = nullptr;
  const std::string text = test::error_text<CommunicationError>([&] {
    run_threads(3, [&](World& world) {
      const auto group = group_of_all(world);
      world.activity().set_limits(
          {.lost_seconds = 0, .hang_seconds = world.rank() == 2 ? 1.0 : 0.0});
      if (world.rank() == 0) {
        first = &world.activity();
      }
      while (world.rank() == 2 &&
             (first == nullptr ||
              first.load()->place().describe().find("in test.all_reduce") == std::string::npos)) {
        std::this_thread::yield();
      }
      if (world.rank() != 1) {
        check_all_reduce<float>(*group, 100, Reduce::sum, false);
      }
    });
  });
  EXPECT_TRUE(text.starts_with("test.all_reduce has waited for ")) << text;
  EXPECT_NE(text.find("not arrived: rank 1 (alive"), std::string::npos) << text;
}

// By its rank of the job, wherever it stands in the group.
TEST(Ranks, ARankThatDoesNotComeToASmallerGroupIsNamed) {
  const std::string text = test::error_text<CommunicationError>([&] {
    run_threads(4, [&](World& world) {
      if (world.rank() % 2 == 0) {
        return;
      }
      world.activity().set_limits({.lost_seconds = 0, .hang_seconds = 1});
      const auto group = world.create_group("odd", std::array{1, 3}, Device::cpu);
      if (world.rank() == 1) {
        check_all_reduce<float>(*group, 100, Reduce::sum, false);
      }
    });
  });
  EXPECT_NE(text.find("not arrived: rank 3 (alive"), std::string::npos) << text;
}

TEST_P(ThreadRanks, AnExceptionEndsOthersThatWait) {
  expect_rank_one_ends_it(GetParam(), [](World& world, const auto& fail) {
    const auto group = group_of_all(world);
    fail();
    Buffer<float> x(100);
    const auto work = group->start(Broadcast{x.view()}, "test.broadcast", g_stream);
    work->wait(g_stream);
  });
}

// Rank 1 has work under way that the others, waiting for it elsewhere, never come to.
TEST_P(ThreadRanks, AnExceptionEndsWorkUnderWay) {
  expect_rank_one_ends_it(GetParam(), [](World& world, const auto& fail) {
    const auto group = group_of_all(world);
    const auto other = group_of_all(world);
    Buffer<float> x(100);
    if (world.rank() == 1) {
      const auto work = group->start(Broadcast{x.view()}, "test.broadcast", g_stream);
      const auto behind = group->start(AllReduce{x.view(), x.view()}, "test.behind", g_stream);
      fail();
    }
    check_all_reduce<float>(*other, 100, Reduce::sum, false);
  });
}

// Ranks come and go while others fail: whoever is let on reads memory that is still there.
TEST_P(ThreadRanks, AnExceptionLeavesNobodyReadingWhatHasGone) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    expect_rank_one_ends_it(GetParam(), [&](World& world, const auto& fail) {
      const auto group = group_of_all(world);
      for (int i = 0; i < 10; ++i) {
        check_all_reduce<float>(*group, 3000, Reduce::sum, false);
        if (i == repeat % 10) {
          fail();
        }
      }
    });
  }
}

TEST_P(ThreadRanks, UnequalSizesEndTheJob) {
  const std::string text = test::error_text<ContractError>([&] {
    run_threads(GetParam(), [](World& world) {
      const auto group = group_of_all(world);
      Buffer<float> x(world.rank() == 0 ? 1000 : 2000);
      group->run(AllReduce{x.view(), x.view()}, "test.all_reduce", g_stream);
    });
  });
  EXPECT_NE(text.find("(the ranks do not make the same calls); mend the caller"), text.npos)
      << text;
}

}  // namespace
}  // namespace memphis
