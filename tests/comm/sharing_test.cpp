// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/sharing.h"

#include <gtest/gtest.h>

#include "csrc/comm/solo.h"
#include "csrc/comm/threads.h"
#include "csrc/comm/together.h"

namespace memphis::test {
namespace {

TEST(SumOfThoseWith, CountsTheRanksOfOneKey) {
  run_threads(5, [](World& world) {
    const auto all = create_group_of_all(world);
    // Two machines of two ranks, whose numbers differ in either word, and a rank by itself.
    const std::array<std::int64_t, 2> keys[] = {{7, 1}, {7, 2}, {7, 1}, {7, 2}, {8, 1}};
    const auto rank = static_cast<std::size_t>(world.rank());
    const Sharing sharing = sum_of_those_with(*all, keys[rank], 10 + world.rank(), "test");
    const std::int64_t sums[] = {22, 24, 22, 24, 14};
    EXPECT_EQ(sharing.num_ranks, rank == 4 ? 1 : 2);
    EXPECT_EQ(sharing.sum, sums[rank]);
  });
}

TEST(SumOfThoseWith, IsOnesOwnAlone) {
  const auto all = create_group_of_all(*make_solo_world());
  const Sharing sharing = sum_of_those_with(*all, {1, 2}, 3, "test");
  EXPECT_EQ(sharing.num_ranks, 1);
  EXPECT_EQ(sharing.sum, 3);
}

}  // namespace
}  // namespace memphis::test
