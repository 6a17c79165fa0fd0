// SPDX-License-Identifier: Apache-2.0
//
// What the simulated NCCL says where ranks differ, which on GPUs is a job that hangs or a result
// that is wrong. Ranks are threads here; conformance_test has those that are processes.
#include <chrono>
#include <csignal>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nccl.h>

#include "csrc/core/device.h"
#include "csrc/core/dtype.h"
#include "tests/comm/simt_nccl_ranks.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

using namespace test;

TEST(SimtNccl, SumsOfBf16RoundAtEachAdditionInTheOrderOfRanks) {
  // In bf16, of 8 digits, 256 + 1 is 256: so often as it is added alone.
  for (const auto& [first, sum] : {std::pair(256.0F, 256.0F), std::pair(1.0F, 3.0F)}) {
    const auto results = on_ranks(3, [&, f = first, s = sum](Rank& rank) {
      const OnDevice<bf16> x(std::vector<bf16>{bf16(rank.rank() == 0 ? f : 1.0F)});
      const OnDevice<bf16> y(1);
      const Result result = rank.settle(
          ncclAllReduce(x.data(), y.data(), 1, ncclBfloat16, ncclSum, rank.comm(), rank.stream()));
      EXPECT_EQ(static_cast<float>(y.values()[0]), s);
      return result;
    });
    expect_on_all(results, ncclSuccess, "");
  }
}

// More than a stage holds, and every kind of call at once.
TEST(SimtNccl, AGroupMovesAllItsCallsWhateverTheirOrder) {
  static constexpr std::size_t kCount = 50000;
  const auto results = on_ranks(3, [](Rank& rank) {
    const int r = rank.rank();
    const OnDevice<float> x(std::vector<float>(kCount, static_cast<float>(r + 1)));
    const OnDevice<float> sums(kCount);
    std::vector<std::unique_ptr<OnDevice<float>>> received;
    for (int p = 0; p < 3; ++p) {
      received.push_back(std::make_unique<OnDevice<float>>(kCount));
    }
    const Result result = rank.group([&] {
      for (int i = 0; i < 3; ++i) {
        const int p = (r + i) % 3;  // each rank in another order
        ncclRecv(received[static_cast<std::size_t>(p)]->data(),
                 kCount,
                 ncclFloat32,
                 p,
                 rank.comm(),
                 rank.stream());
        ncclSend(x.data(), kCount, ncclFloat32, p, rank.comm(), rank.stream());
      }
      ncclAllReduce(
          x.data(), sums.data(), kCount, ncclFloat32, ncclSum, rank.comm(), rank.stream());
    });
    EXPECT_EQ(sums.values(), std::vector<float>(kCount, 6.0F));
    for (int p = 0; p < 3; ++p) {
      EXPECT_EQ(received[static_cast<std::size_t>(p)]->values(),
                std::vector<float>(kCount, static_cast<float>(p + 1)));
    }
    const Result parted = rank.part();
    return result.status == ncclSuccess ? parted : result;
  });
  expect_on_all(results, ncclSuccess, "");
}

// Ranks that have nothing to send make no call.
TEST(SimtNccl, SendsAndReceivesConcernTheirTwoRanksAlone) {
  const auto results = on_ranks(3, [](Rank& rank) {
    const OnDevice<float> x(std::vector<float>(8, 1.0F));
    const OnDevice<float> y(8);
    Result result;
    if (rank.rank() == 0) {
      result = rank.settle(ncclSend(x.data(), 8, ncclFloat32, 1, rank.comm(), rank.stream()));
    } else if (rank.rank() == 1) {
      result = rank.settle(ncclRecv(y.data(), 8, ncclFloat32, 0, rank.comm(), rank.stream()));
      EXPECT_EQ(y.values(), x.values());
    }
    return result.status == ncclSuccess ? rank.sum(x.data(), y.data(), 8) : result;
  });
  expect_on_all(results, ncclSuccess, "");
}

TEST(SimtNccl, CollectivesThatDifferAreNamed) {
  const char* const why =
      " (on GPUs they would wait for ever, or take others' memory); let all ranks make the same "
      "calls";
  const OnDevice<float> x(std::vector<float>(64));
  const OnDevice<float> y(64);
  const auto all_reduce = [&](std::size_t count, ncclDataType_t type, ncclRedOp_t op) {
    return [&, count, type, op](Rank& rank) {
      return rank.settle(
          ncclAllReduce(x.data(), y.data(), count, type, op, rank.comm(), rank.stream()));
    };
  };
  const auto broadcast = [&](int root) {
    return [&, root](Rank& rank) {
      return rank.settle(
          ncclBroadcast(x.data(), y.data(), 8, ncclFloat32, root, rank.comm(), rank.stream()));
    };
  };
  const auto usual = all_reduce(8, ncclFloat32, ncclSum);
  const std::string usual_text = "ncclAllReduce(count 8, ncclFloat32, ncclSum)";
  struct Case {
    std::function<Result(Rank&)> one;
    std::string one_text;
    std::function<Result(Rank&)> other;
    std::string other_text;
  };
  const std::vector<Case> cases = {
      {usual,
       usual_text,
       all_reduce(9, ncclFloat32, ncclSum),
       "ncclAllReduce(count 9, ncclFloat32, ncclSum)"},
      {usual,
       usual_text,
       all_reduce(8, ncclInt32, ncclSum),
       "ncclAllReduce(count 8, ncclInt32, ncclSum)"},
      {usual,
       usual_text,
       all_reduce(8, ncclFloat32, ncclMax),
       "ncclAllReduce(count 8, ncclFloat32, ncclMax)"},
      {usual, usual_text, broadcast(0), "ncclBroadcast(count 8, ncclFloat32, root 0)"},
      {broadcast(1),
       "ncclBroadcast(count 8, ncclFloat32, root 1)",
       broadcast(0),
       "ncclBroadcast(count 8, ncclFloat32, root 0)"},
  };
  for (const Case& tested : cases) {
    const auto results = on_ranks(2, [&](Rank& rank) {
      const Result first = rank.sum(x.data(), y.data(), 8);
      if (first.status != ncclSuccess) {
        return first;
      }
      return rank.rank() == 0 ? tested.one(rank) : tested.other(rank);
    });
    expect_on_all(results,
                  ncclInvalidUsage,
                  "test: collective 2 of rank 0 is " + tested.one_text + " and that of rank 1 " +
                      tested.other_text + why);
  }
}

TEST(SimtNccl, ASendAndAReceiveOfAnotherSizeAreNamed) {
  const auto results = on_ranks(2, [](Rank& rank) {
    const OnDevice<float> x(std::vector<float>(8));
    return rank.settle(rank.rank() == 0
                           ? ncclSend(x.data(), 8, ncclFloat32, 1, rank.comm(), rank.stream())
                           : ncclRecv(x.data(), 6, ncclFloat32, 0, rank.comm(), rank.stream()));
  });
  expect_on_all(results,
                ncclInvalidUsage,
                "test: rank 0 makes ncclSend(count 8, ncclFloat32, to rank 1) and rank 1 "
                "ncclRecv(count 6, ncclFloat32, from rank 0) (on GPUs they would wait for ever, or "
                "write past the end); let both move the same");
}

// The receive is missing from the group that rank 1 makes in its place. Rank 2 waits for both.
TEST(SimtNccl, ASendWithoutAReceiveIsNamed) {
  const auto results = on_ranks(3, [](Rank& rank) {
    const OnDevice<float> x(std::vector<float>(8));
    const OnDevice<float> y(8);
    return rank.rank() == 0
               ? rank.settle(ncclSend(x.data(), 8, ncclFloat32, 1, rank.comm(), rank.stream()))
               : rank.sum(x.data(), y.data(), 8);
  });
  expect_on_all(results,
                ncclInvalidUsage,
                "test: rank 0 waits for rank 1 in ncclSend(count 8, ncclFloat32, to rank 1), rank "
                "1 waits for rank 0 in ncclAllReduce(count 8, ncclFloat32, ncclSum) (none makes "
                "the call that another waits for; on GPUs they would for ever); let all ranks make "
                "the same calls");
}

TEST(SimtNccl, ASendToItselfWithoutAReceiveIsNamed) {
  const auto results = on_ranks(2, [](Rank& rank) {
    const OnDevice<float> x(std::vector<float>(8));
    const OnDevice<float> y(8);
    return rank.rank() == 1
               ? rank.settle(ncclSend(x.data(), 8, ncclFloat32, 1, rank.comm(), rank.stream()))
               : rank.sum(x.data(), y.data(), 8);
  });
  expect_on_all(results,
                ncclInvalidUsage,
                "test: rank 1 waits for rank 1 in ncclSend(count 8, ncclFloat32, to rank 1) (none "
                "makes the call that another waits for; on GPUs they would for ever); let all "
                "ranks make the same calls");
}

TEST(SimtNccl, ARankThatPartsWhileAnotherCallsIsNamed) {
  const auto results = on_ranks(2, [](Rank& rank) {
    const OnDevice<float> x(std::vector<float>(8));
    const OnDevice<float> y(8);
    return rank.rank() == 1 ? rank.part() : rank.sum(x.data(), y.data(), 8);
  });
  expect_on_all(results,
                ncclInvalidUsage,
                "test: rank 0 waits for rank 1 in ncclAllReduce(count 8, ncclFloat32, ncclSum), "
                "and rank 1 is in ncclCommFinalize (it will not make that call any more); let all "
                "ranks make the same calls");
}

// Each rank's fault is known to all of them.
TEST(SimtNccl, MemoryThatIsNotTheDevicesIsNamed) {
  const OnDevice<float> x(std::vector<float>(8));
  std::vector<float> host(8);
  const auto problem_with = [&](const std::function<ncclResult_t(ncclComm_t, cudaStream_t)>& call) {
    const auto results = on_ranks(2, [&](Rank& rank) {
      const OnDevice<float> send(std::vector<float>(8));
      const OnDevice<float> receive(8);
      return rank.rank() == 1 ? rank.settle(call(rank.comm(), rank.stream()))
                              : rank.sum(send.data(), receive.data(), 8);
    });
    EXPECT_EQ(results[0].status, ncclInvalidUsage);
    EXPECT_EQ(results[1].status, ncclInvalidUsage);
    EXPECT_EQ(results[0].text, results[1].text);
    EXPECT_TRUE(test::follows_grammar(results[0].text));
    return results[0].text;
  };
  const std::string call = "test: rank 1 makes ncclAllReduce(count 8, ncclFloat32, ncclSum): ";
  EXPECT_EQ(problem_with([&](ncclComm_t comm, cudaStream_t stream) {
              return ncclAllReduce(host.data(), x.data(), 8, ncclFloat32, ncclSum, comm, stream);
            }),
            call + "send is no memory of the device (the GPU would fault there); mend the caller");
  EXPECT_EQ(
      problem_with([&](ncclComm_t comm, cudaStream_t stream) {
        return ncclAllReduce(x.data(), host.data(), 8, ncclFloat32, ncclSum, comm, stream);
      }),
      call + "receive is no memory of the device (the GPU would fault there); mend the caller");
  EXPECT_EQ(
      problem_with([&](ncclComm_t comm, cudaStream_t stream) {
        return ncclAllReduce(x.data() + 1, x.data() + 1, 8, ncclFloat32, ncclSum, comm, stream);
      }),
      call +
          "send has 32 bytes, beginning at byte 4 of an allocation of 32 bytes (the GPU would "
          "fault there, or use what is others'); mend the caller");
  const OnDevice<float> longer(std::vector<float>(12));
  EXPECT_EQ(problem_with([&](ncclComm_t comm, cudaStream_t stream) {
              return ncclAllReduce(
                  longer.data(), longer.data() + 4, 8, ncclFloat32, ncclSum, comm, stream);
            }),
            call +
                "send and receive overlap (what is read would already be written); mend the "
                "caller");
}

TEST(SimtNccl, AnAbortEndsWhatIsWaitedForInVain) {
  const auto results = on_ranks(2, [](Rank& rank) {
    const OnDevice<float> x(std::vector<float>(8));
    const OnDevice<float> y(8);
    if (rank.rank() == 0) {
      EXPECT_EQ(
          ncclAllReduce(x.data(), y.data(), 8, ncclFloat32, ncclSum, rank.comm(), rank.stream()),
          ncclInProgress);
    }
    return Result();  // the ranks abort, 0 first
  });
  expect_on_all(results, ncclSuccess, "");
}

TEST(SimtNccl, AnAbortEndsConnectingToARankThatNeverComes) {
  const std::vector<ncclUniqueId> ids = make_ids(1);
  ncclComm_t comm = nullptr;
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  std::vector<ncclUniqueId> own = ids;
  EXPECT_EQ(ncclCommInitRankScalable(&comm, 2, 0, 1, own.data(), &config), ncclInProgress);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  ncclResult_t status = ncclSuccess;
  EXPECT_EQ(ncclCommGetAsyncError(comm, &status), ncclSuccess);
  EXPECT_EQ(status, ncclInProgress);
  EXPECT_EQ(ncclCommAbort(comm), ncclSuccess);
}

TEST(SimtNccl, AnAbortOfSeveralInAGroupEndsThemAll) {
  const auto results = on_ranks(2, [](Rank& rank) {
    std::vector<ncclComm_t> comms;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    for (int i = 0; i < 3; ++i) {
      std::vector<ncclUniqueId> ids = make_ids(1);
      comms.emplace_back();
      EXPECT_EQ(ncclCommInitRankScalable(&comms.back(), 2, rank.rank(), 1, ids.data(), &config),
                ncclInProgress);
    }
    ncclGroupStart();
    for (const ncclComm_t comm : comms) {
      EXPECT_EQ(ncclCommAbort(comm), ncclSuccess);
    }
    return Result{ncclGroupEnd(), ""};
  });
  expect_on_all(results, ncclSuccess, "");
}

TEST(SimtNccl, ARankThatAbortsIsNamedToThoseThatWaitForIt) {
  const std::vector<ncclUniqueId> ids = make_ids(1);
  Result result;
  std::thread other([&] {
    const Rank rank(ids, 1, 2);
    EXPECT_EQ(rank.connected().status, ncclSuccess);
  });
  {
    const Rank rank(ids, 0, 2);
    ASSERT_EQ(rank.connected().status, ncclSuccess);
    const OnDevice<float> x(std::vector<float>(8));
    result = rank.sum(x.data(), x.data(), 8);
  }
  other.join();
  EXPECT_EQ(result.status, ncclRemoteError);
  EXPECT_EQ(result.text,
            "test: rank 1 is gone while rank 0 waits in ncclAllReduce(count 8, ncclFloat32, "
            "ncclSum) (it has aborted, or its process has ended); see what that rank says");
}

TEST(SimtNccl, AProcessThatIsKilledIsNamedToThoseThatWaitForIt) {
  const std::vector<ncclUniqueId> ids = make_ids(1);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const Rank rank(ids, 1, 2);
    while (true) {
      pause();
    }
  }
  const Rank rank(ids, 0, 2);
  EXPECT_EQ(rank.connected().status, ncclSuccess) << rank.connected().text;
  kill(child, SIGKILL);
  const OnDevice<float> x(std::vector<float>(8));
  const Result result = rank.sum(x.data(), x.data(), 8);
  EXPECT_EQ(result.status, ncclRemoteError);
  EXPECT_NE(result.text.find("rank 1 is gone while rank 0 waits in ncclAllReduce("),
            std::string::npos)
      << result.text;
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
}

TEST(SimtNccl, RanksThatDoNotMeetAreTold) {
  const auto connect = [](std::vector<ncclUniqueId> ids, int rank, int num_ranks) {
    return Rank(std::move(ids), rank, num_ranks).connected();
  };
  EXPECT_EQ(connect({ncclUniqueId{}}, 0, 1).status, ncclInvalidArgument);
  const std::vector<ncclUniqueId> used = make_ids(1);
  EXPECT_EQ(connect(used, 0, 1).status, ncclSuccess);
  const Result again = connect(used, 0, 1);
  EXPECT_EQ(again.status, ncclInvalidUsage);
  EXPECT_TRUE(test::follows_grammar(again.text)) << again.text;

  // Both are number 0, or they count the ranks differently.
  for (const auto& [rank, num_ranks] : {std::pair(0, 2), std::pair(1, 3)}) {
    const std::vector<ncclUniqueId> ids = make_ids(1);
    Result one;
    std::thread other([&] { one = connect(ids, 0, 2); });
    const Result two = connect(ids, rank, num_ranks);
    other.join();
    EXPECT_EQ(one.status, ncclInvalidUsage);
    EXPECT_EQ(one.text, two.text);
    EXPECT_TRUE(test::follows_grammar(one.text)) << one.text;
  }
}

}  // namespace
}  // namespace memphis
