// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/together.h"

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/threads.h"
#include "csrc/core/error.h"

namespace memphis::test {
namespace {

constexpr int kNumRanks = 3;

TEST(RollCall, TellsEachRankWhatAllSay) {
  run_threads(kNumRanks, [](World& world) {
    const auto all = create_group_of_all(world);
    RollCall call(*all, 2);
    for (std::int64_t round = 0; round < 3; ++round) {
      call.own()[0] = 10 * round + world.rank();
      call.take("call", [&] { call.own()[1] = -world.rank(); });  // by the action
      for (int rank = 0; rank < kNumRanks; ++rank) {
        EXPECT_EQ(call.said(rank, 0), 10 * round + rank);
        EXPECT_EQ(call.said(rank, 1), -rank);
      }
      EXPECT_EQ(call.largest(0), 10 * round + kNumRanks - 1);
      EXPECT_EQ(call.largest(1), 0);
    }
    EXPECT_THROW(call.said(0, 2), ContractError);
  });
}

// As of together(): who failed first says what, the others that it did, and all go on alike.
TEST(RollCall, ThrowsOnAllRanksWhatTheFirstHasMet) {
  std::vector<std::string> said(kNumRanks);
  run_threads(kNumRanks, [&](World& world) {
    const auto all = create_group_of_all(world);
    RollCall call(*all, 1);
    const auto fails_on_two = [&] {
      if (world.rank() > 0) {
        throw DataError("lost by rank " + std::to_string(world.rank()));
      }
    };
    try {
      call.take("reading", fails_on_two);
      ADD_FAILURE() << "rank " << world.rank() << " goes on";
    } catch (const FailedElsewhere& error) {
      EXPECT_NE(world.rank(), 1);
      EXPECT_EQ(error.code(), ExitCode::data);
      said[static_cast<std::size_t>(world.rank())] = error.what();
    } catch (const DataError& error) {
      EXPECT_EQ(world.rank(), 1);
      said[static_cast<std::size_t>(world.rank())] = error.what();
    }
    call.take("reading", [] {});
  });
  EXPECT_EQ(said[0], "reading failed on rank 1 (all ranks do it or none); see that rank's message");
  EXPECT_EQ(said[1], "lost by rank 1");
  EXPECT_EQ(said[2], said[0]);
}

}  // namespace
}  // namespace memphis::test
