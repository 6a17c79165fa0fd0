// SPDX-License-Identifier: Apache-2.0
//
// When calls of the simulated NCCL are done: behind their streams, as NCCL's are. And what of the
// environment of NCCL would keep them from it.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <nccl.h>

#include "csrc/comm/nccl.h"
#include "csrc/comm/solo.h"
#include "csrc/core/device.h"
#include "csrc/core/device_simt.h"
#include "csrc/core/error.h"
#include "tests/comm/simt_nccl_ranks.h"
#include "tests/support/environment_variable.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

using namespace test;

// Ranks are threads: one goes on where another has come to.
class Signal {
 public:
  void set() { set_ = true; }
  void wait() const {
    const auto end = std::chrono::steady_clock::now() + kLimit;
    while (!set_) {
      ASSERT_LT(std::chrono::steady_clock::now(), end) << "the other rank does not come";
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }

 private:
  std::atomic<bool> set_ = false;
};

// Of what the stream has by now.
Event point_of(Stream stream) {
  Event point(Device::cuda, Event::Use::ordering);
  point.record(stream);
  return point;
}

// So that no later broadcast connects the ranks.
Result connect_broadcasts(const Rank& rank) {
  const OnDevice<float> x(8);
  return rank.settle(rank.broadcast(x.data(), 8, 0));
}

// A collective's few blocks would else wait for all those of the kernel that is at work.
TEST(NcclCommunicator, HasAStreamOfTheHighestPriority) {
  const std::int64_t before = simt_device::num_streams(StreamPriority::highest);
  const auto host = make_solo(Device::cpu);
  Activity activity;
  {
    const auto group = make_nccl_communicator("all", *host, activity);
    EXPECT_EQ(simt_device::num_streams(StreamPriority::highest), before + 1);
    const OwnedStream ordinary(Device::cuda);
    EXPECT_EQ(simt_device::num_streams(StreamPriority::highest), before + 1);
  }
  EXPECT_EQ(simt_device::num_streams(StreamPriority::highest), before);
}

TEST(SimtNcclStreams, AFirstCallIsInProgressUntilTheOthersHaveComeToTheirs) {
  Signal looked;
  const auto results = on_ranks(3, [&](Rank& rank) {
    const OnDevice<float> x(std::vector<float>(8, 1.0F));
    if (rank.rank() > 0) {
      looked.wait();
      return rank.settle(rank.broadcast(x.data(), 8, 0));
    }
    EXPECT_EQ(rank.broadcast(x.data(), 8, 0), ncclInProgress);
    ncclResult_t status = ncclSuccess;
    EXPECT_EQ(ncclCommGetAsyncError(rank.comm(), &status), ncclSuccess);
    EXPECT_EQ(status, ncclInProgress);
    EXPECT_EQ(rank.broadcast(x.data(), 8, 0), ncclInvalidArgument);
    EXPECT_TRUE(test::follows_grammar(ncclGetLastError(nullptr))) << ncclGetLastError(nullptr);
    looked.set();
    return rank.settle(ncclInProgress);
  });
  expect_on_all(results, ncclSuccess, "");
}

// And of sends and receives each other rank is a kind of its own.
TEST(SimtNcclStreams, AFirstReceiveIsInProgressUntilItsSenderHasCome) {
  Signal looked;
  const auto results = on_ranks(2, [&](Rank& rank) {
    const OnDevice<float> x(std::vector<float>(8, static_cast<float>(rank.rank())));
    for (int i = 0; i < 2; ++i) {
      if (rank.rank() == 1 && i == 0) {
        looked.wait();
      }
      const bool sends = rank.rank() == 1;
      const ncclResult_t status =
          sends ? ncclSend(x.data(), 8, ncclFloat32, 0, rank.comm(), rank.stream())
                : ncclRecv(x.data(), 8, ncclFloat32, 1, rank.comm(), rank.stream());
      if (i == 1 || !sends) {
        EXPECT_EQ(status, i == 0 ? ncclInProgress : ncclSuccess);
      }
      looked.set();
      if (const Result result = rank.settle(status); result.status != ncclSuccess) {
        return result;
      }
    }
    EXPECT_EQ(x.values(), std::vector<float>(8, 1.0F));
    return Result();
  });
  expect_on_all(results, ncclSuccess, "");
}

// As many as a pipeline has, none of which is waited for before all are enqueued.
TEST(SimtNcclStreams, CallsOfAKindThatHasConnectedAreUnderWayOnTheirStream) {
  static constexpr std::size_t kNumCalls = 8;
  static constexpr std::size_t kCount = 50000;  // more than a stage holds
  Signal enqueued;
  const auto results = on_ranks(2, [&](Rank& rank) {
    if (const Result result = connect_broadcasts(rank); result.status != ncclSuccess) {
      return result;
    }
    const bool sends = rank.rank() == 1;
    if (sends) {
      enqueued.wait();
    }
    std::vector<std::unique_ptr<OnDevice<float>>> x;
    std::vector<Event> points;
    for (std::size_t i = 0; i < kNumCalls; ++i) {
      x.push_back(std::make_unique<OnDevice<float>>(
          std::vector<float>(kCount, sends ? static_cast<float>(i) : -1.0F)));
      EXPECT_EQ(rank.broadcast(x.back()->data(), kCount, 1), ncclSuccess);
      points.push_back(point_of(rank.view()));
    }
    if (!sends) {
      for (const Event& point : points) {
        EXPECT_FALSE(point.is_done());
      }
      enqueued.set();
    }
    for (std::size_t i = kNumCalls; i > 0; --i) {
      points[i - 1].wait();
      EXPECT_EQ(x[i - 1]->values(), std::vector<float>(kCount, static_cast<float>(i - 1)));
    }
    return rank.settle(ncclSuccess);
  });
  expect_on_all(results, ncclSuccess, "");
}

// Each in its own way of waiting.
TEST(SimtNcclStreams, WhatFollowsOnAStreamSeesWhatWasPending) {
  static constexpr std::size_t kCount = 50000;
  using Bytes = std::vector<float>;
  const std::vector<std::function<void(const Rank&, float*, Bytes&)>> ways = {
      [](const Rank& rank, float* x, Bytes& result) {
        device_copy(result.data(), x, kCount * sizeof(float), rank.view());
      },
      [](const Rank& rank, float* x, Bytes& result) {
        synchronize(rank.view());
        device_copy(result.data(), x, kCount * sizeof(float), kStream);
      },
      [](const Rank& rank, float* x, Bytes& result) {
        const OwnedStream other(Device::cuda);
        point_of(rank.view()).make_wait(other.view());
        device_copy(result.data(), x, kCount * sizeof(float), other.view());
      },
      [](const Rank& rank, float* x, Bytes& result) {
        device_zero(x, sizeof(float), rank.view());  // not before it is received
        device_copy(result.data(), x, kCount * sizeof(float), kStream);
        EXPECT_EQ(result[0], 0.0F);
        result[0] = 2.0F;
      },
  };
  for (const auto& way : ways) {
    Signal waits;
    const auto results = on_ranks(2, [&](Rank& rank) {
      if (const Result result = connect_broadcasts(rank); result.status != ncclSuccess) {
        return result;
      }
      const OnDevice<float> x(Bytes(kCount, rank.rank() == 1 ? 2.0F : 0.0F));
      if (rank.rank() == 1) {
        waits.wait();
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        return rank.settle(rank.broadcast(x.data(), kCount, 1));
      }
      EXPECT_EQ(rank.broadcast(x.data(), kCount, 1), ncclSuccess);
      Bytes result(kCount);
      waits.set();
      way(rank, x.data(), result);
      EXPECT_EQ(result, Bytes(kCount, 2.0F));
      return rank.settle(ncclSuccess);
    });
    expect_on_all(results, ncclSuccess, "");
  }
}

TEST(SimtNcclStreams, AnEventIsOfTheTimeAtWhichWhatLiesBeforeItIsDone) {
  Signal recorded;
  const auto results = on_ranks(2, [&](Rank& rank) {
    if (const Result result = connect_broadcasts(rank); result.status != ncclSuccess) {
      return result;
    }
    const OnDevice<float> x(8);
    if (rank.rank() == 1) {
      recorded.wait();
      return rank.settle(rank.broadcast(x.data(), 8, 1));
    }
    Event first(Device::cuda);
    Event second(Device::cuda);
    Event between(Device::cuda);
    EXPECT_EQ(rank.broadcast(x.data(), 8, 1), ncclSuccess);
    first.record(rank.view());
    between.record(kStream);
    recorded.set();
    first.wait();
    second.record(kStream);
    EXPECT_GE(first.seconds_since(between), 0);
    EXPECT_GE(second.seconds_since(first), 0);
    return rank.settle(ncclSuccess);
  });
  expect_on_all(results, ncclSuccess, "");
}

// Rank 0 passes on by one communicator what the other one brings it.
TEST(SimtNcclStreams, WorkOfOneCommunicatorLiesBehindThatOfAnotherOnItsStream) {
  const std::vector<ncclUniqueId> ids = make_ids(1);
  Signal enqueued;
  const auto results = on_ranks(2, [&](Rank& rank) {
    Rank other(ids, rank.rank(), 2);
    for (const Rank* one : {&rank, &other}) {
      if (const Result result = connect_broadcasts(*one); result.status != ncclSuccess) {
        return result;
      }
    }
    const OnDevice<float> x(std::vector<float>(8, rank.rank() == 1 ? 5.0F : 0.0F));
    if (rank.rank() == 0) {
      EXPECT_EQ(rank.broadcast(x.data(), 8, 1), ncclSuccess);
      EXPECT_EQ(ncclBroadcast(x.data(), x.data(), 8, ncclFloat32, 0, other.comm(), rank.stream()),
                ncclSuccess);
      enqueued.set();
      const Result result = rank.settle(ncclSuccess);
      return result.status == ncclSuccess ? other.part() : result;
    }
    // It is ready for what is passed on long before it gives it.
    const OnDevice<float> y(8);
    EXPECT_EQ(other.broadcast(y.data(), 8, 0), ncclSuccess);
    enqueued.wait();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_FALSE(point_of(other.view()).is_done());
    EXPECT_EQ(rank.broadcast(x.data(), 8, 1), ncclSuccess);
    EXPECT_EQ(rank.settle(ncclSuccess).status, ncclSuccess);
    const Result result = other.settle(ncclSuccess);
    EXPECT_EQ(y.values(), std::vector<float>(8, 5.0F));
    return result.status == ncclSuccess ? other.part() : result;
  });
  expect_on_all(results, ncclSuccess, "");
}

TEST(SimtNcclStreams, TwoCommunicatorsMayBeUsedInOppositeOrders) {
  const std::vector<ncclUniqueId> ids = make_ids(1);
  const auto results = on_ranks(2, [&](Rank& rank) {
    Rank other(ids, rank.rank(), 2);
    const OnDevice<float> x(std::vector<float>(8, 1.0F));
    const OnDevice<float> y(std::vector<float>(8, 2.0F));
    for (const Rank* one : {&rank, &other}) {
      if (const Result result = one->sum(x.data(), x.data(), 8); result.status != ncclSuccess) {
        return result;
      }
    }
    const OnDevice<float> sums(8);
    const OnDevice<float> other_sums(8);
    const auto sum = [](const Rank& by, const float* send, float* receive) {
      return ncclAllReduce(send, receive, 8, ncclFloat32, ncclSum, by.comm(), by.stream());
    };
    for (const bool first : {rank.rank() == 0, rank.rank() == 1}) {
      EXPECT_EQ(first ? sum(rank, x.data(), sums.data()) : sum(other, y.data(), other_sums.data()),
                ncclSuccess);
    }
    EXPECT_EQ(rank.settle(ncclSuccess).status, ncclSuccess);
    const Result result = other.settle(ncclSuccess);
    EXPECT_EQ(sums.values(), std::vector<float>(8, 8.0F));
    EXPECT_EQ(other_sums.values(), std::vector<float>(8, 4.0F));
    return result.status == ncclSuccess ? other.part() : result;
  });
  expect_on_all(results, ncclSuccess, "");
}

TEST(SimtNcclStreams, PartingWaitsForWhatIsUnderWay) {
  Signal parts;
  const auto results = on_ranks(2, [&](Rank& rank) {
    if (const Result result = connect_broadcasts(rank); result.status != ncclSuccess) {
      return result;
    }
    const OnDevice<float> x(std::vector<float>(8, static_cast<float>(rank.rank())));
    if (rank.rank() == 1) {
      parts.wait();
    }
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(rank.broadcast(x.data(), 8, 1), ncclSuccess);
    }
    const Event done = point_of(rank.view());
    EXPECT_EQ(ncclCommFinalize(rank.comm()), ncclInProgress);
    parts.set();
    const Result result = rank.settle(ncclInProgress);
    EXPECT_TRUE(done.is_done());
    EXPECT_EQ(x.values(), std::vector<float>(8, 1.0F));
    return result;
  });
  expect_on_all(results, ncclSuccess, "");
}

// Rank 1 goes before it has come to any of them.
TEST(SimtNcclStreams, WhatFailsEndsAllThatIsEnqueued) {
  const GpuEach gpus;
  const std::vector<ncclUniqueId> ids = make_ids(1);
  Signal enqueued;
  std::thread other([&] {
    const Rank rank(ids, 1, 2);
    EXPECT_EQ(connect_broadcasts(rank).status, ncclSuccess);
    enqueued.wait();
  });
  {
    const OnDevice<float> x(std::vector<float>(8));
    std::vector<Event> points;
    const Rank rank(ids, 0, 2);
    EXPECT_EQ(connect_broadcasts(rank).status, ncclSuccess);
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(rank.broadcast(x.data(), 8, 1), ncclSuccess);
      points.push_back(point_of(rank.view()));
    }
    enqueued.set();
    for (const Event& point : points) {
      point.wait();  // which no watch ends
      EXPECT_FALSE(point.is_done());
    }
    synchronize(rank.view());
    const Result result = rank.settle(ncclSuccess);
    EXPECT_EQ(result.status, ncclRemoteError);
    EXPECT_EQ(result.text,
              "test: rank 1 is gone while rank 0 waits in ncclBroadcast(count 8, ncclFloat32, root "
              "1) (it has aborted, or its process has ended); see what that rank says");
    EXPECT_EQ(rank.broadcast(x.data(), 8, 1), ncclRemoteError);
  }
  other.join();
}

// Throws as soon as somebody waits.
struct ImpatientWatch final : GpuWatch {
  void check() override { throw std::runtime_error("it will never be done"); }
  void leave() noexcept override { ++num_left; }
  void give_up() noexcept override {}
  int num_left = 0;
};

TEST(SimtNcclStreams, AWatchEndsEveryWaitForWhatIsPending) {
  const auto results = on_ranks(2, [](Rank& rank) {
    if (const Result result = connect_broadcasts(rank);
        result.status != ncclSuccess || rank.rank() == 1) {
      return result;
    }
    const OnDevice<float> x(std::vector<float>(8));
    EXPECT_EQ(rank.broadcast(x.data(), 8, 1), ncclSuccess);
    const Event point = point_of(rank.view());
    const OwnedStream other(Device::cuda);
    std::vector<float> host(8);
    const std::vector<std::function<void()>> waits = {
        [&] { synchronize(rank.view()); },
        [&] { point.wait(); },
        [&] { point.make_wait(other.view()); },
        [&] { device_copy(host.data(), x.data(), 32, rank.view()); },
        [&] { device_zero(x.data(), 32, rank.view()); },
    };
    ImpatientWatch watch;
    set_gpu_watch(&watch);
    for (const auto& wait : waits) {
      EXPECT_EQ(test::error_text<std::runtime_error>(wait), "it will never be done");
    }
    EXPECT_EQ(watch.num_left, static_cast<int>(waits.size()));
    // Who need not wait does not ask.
    device_zero(x.data(), 32, other.view());
    synchronize(other.view());
    set_gpu_watch(nullptr);
    EXPECT_FALSE(point.is_done());
    return Result();
  });
  expect_on_all(results, ncclSuccess, "");
}

TEST(SimtNcclStreams, AnAbortEndsWhatIsPendingOnTheStream) {
  const std::vector<ncclUniqueId> ids = make_ids(1);
  const OwnedStream stream(Device::cuda);
  const auto results = on_ranks(2, [&](Rank& rank) {
    const OnDevice<float> x(std::vector<float>(8));
    Result result = connect_broadcasts(rank);
    if (rank.rank() == 0 && result.status == ncclSuccess) {
      EXPECT_EQ(ncclBroadcast(x.data(),
                              x.data(),
                              8,
                              ncclFloat32,
                              1,
                              rank.comm(),
                              static_cast<cudaStream_t>(stream.view().handle)),
                ncclSuccess);
      EXPECT_FALSE(point_of(stream.view()).is_done());
    }
    return result;
  });
  expect_on_all(results, ncclSuccess, "");
  EXPECT_TRUE(point_of(stream.view()).is_done());
}

TEST(SimtNcclStreams, MemoryThatIsFreedUnderWorkIsNamed) {
  Signal freed;
  const auto results = on_ranks(2, [&](Rank& rank) {
    if (const Result result = connect_broadcasts(rank); result.status != ncclSuccess) {
      return result;
    }
    auto x = std::make_unique<OnDevice<float>>(8);
    if (rank.rank() == 1) {
      freed.wait();
      return rank.settle(rank.broadcast(x->data(), 8, 1));
    }
    EXPECT_EQ(rank.broadcast(x->data(), 8, 1), ncclSuccess);
    x.reset();
    freed.set();
    const Result result = rank.settle(ncclSuccess);
    EXPECT_NE(result.text.find("32 bytes from at byte 0 of a freed allocation of 32 bytes"),
              std::string::npos)
        << result.text;
    return Result();
  });
  EXPECT_EQ(results[0].status, ncclSuccess);
}

// What environments ask for that ranks would wait for ever with.
TEST(NcclVariables, AreRefusedWhereKernelsWouldWaitForEachOther) {
  // Which prepare_nccl sets itself.
  const test::EnvironmentVariable connect("NCCL_RUNTIME_CONNECT", nullptr);
  const test::EnvironmentVariable stack("NCCL_SET_STACK_SIZE", nullptr);
  const NcclGroups pipeline = {
      .num_groups = 6, .num_channels = 130, .has_messages = true, .num_multiprocessors = 132};
  NcclGroups no_messages = pipeline;
  no_messages.has_messages = false;
  const auto refusal = [](const NcclGroups& groups, const char* name, const char* value) {
    const test::EnvironmentVariable asked(name, value);
    std::string text;
    try {
      prepare_nccl(groups);
    } catch (const PreflightError& error) {
      text = error.what();
      EXPECT_TRUE(test::follows_grammar(text));
    }
    return text;
  };
  EXPECT_NE(refusal(pipeline, "NCCL_LAUNCH_ORDER_IMPLICIT", "1").find("unset it"),
            std::string::npos);
  EXPECT_NE(refusal(pipeline, "NCCL_RUNTIME_CONNECT", "1").find("unset it"), std::string::npos);
  EXPECT_EQ(refusal(pipeline, "NCCL_LAUNCH_ORDER_IMPLICIT", "0"), "");
  EXPECT_STREQ(std::getenv("NCCL_RUNTIME_CONNECT"), "0");
  unsetenv("NCCL_RUNTIME_CONNECT");
  EXPECT_EQ(refusal(no_messages, "NCCL_LAUNCH_ORDER_IMPLICIT", "1"), "");
  EXPECT_NE(refusal(no_messages, "NCCL_MAX_CTAS", "17").find("set it to 16 at most"),
            std::string::npos);
  EXPECT_EQ(refusal(no_messages, "NCCL_MAX_CTAS", "16"), "");
  NcclGroups too_many = no_messages;
  too_many.num_channels = 133;
  EXPECT_NE(refusal(too_many, "NCCL_LAUNCH_ORDER_IMPLICIT", "0").find("set NCCL_MAX_CTAS to 1"),
            std::string::npos);
  EXPECT_EQ(refusal(too_many, "NCCL_MAX_CTAS", "1"), "");
  prepare_nccl(pipeline);
}

}  // namespace
}  // namespace memphis
