// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/threads.h"

#include <string>

#include <gtest/gtest.h>

#include "csrc/core/error.h"

namespace memphis::test {
namespace {

constexpr Cores kWhole{.machine = 64, .allowed = 64, .parent = 64, .quota = {}};

ThreadPlan launched(int num_local_ranks, const Cores& cores, std::optional<int> asked = {}) {
  return plan_threads(
      {.cores = cores, .num_local_ranks = num_local_ranks, .was_launched = true, .asked = asked});
}

TEST(Threads, AloneTakeAllCores) {
  const ThreadPlan plan = plan_threads({.cores = kWhole});
  EXPECT_EQ(plan.num_threads, 64);
  EXPECT_EQ(plan.says,
            "64 threads a rank, 1 rank on this machine, which may use 64 of its 64 cores");
  EXPECT_EQ(plan.warning, "");
}

TEST(Threads, OfRanksShareThemOut) {
  EXPECT_EQ(launched(8, kWhole).num_threads, 8);
  EXPECT_EQ(launched(3, kWhole).num_threads, 21);
  EXPECT_EQ(launched(8, kWhole).warning, "");
  const ThreadPlan crowded = launched(4, {.machine = 2, .allowed = 2, .parent = 2, .quota = {}});
  EXPECT_EQ(crowded.num_threads, 1);
  EXPECT_EQ(crowded.warning, "") << "nobody asked for more than one each";
}

TEST(Threads, SayWhereALauncherHasBoundTheRank) {
  const Cores bound{.machine = 64, .allowed = 1, .parent = 64, .quota = {}};
  const ThreadPlan plan = launched(2, bound);
  EXPECT_EQ(plan.num_threads, 1);
  EXPECT_NE(plan.warning.find("this rank may use 1 of 64 cores"), std::string::npos)
      << plan.warning;
  EXPECT_NE(plan.warning.find("its share is 32"), std::string::npos) << plan.warning;
  EXPECT_NE(plan.warning.find("--bind-to none"), std::string::npos) << plan.warning;
  EXPECT_NE(launched(2, bound, 8).warning, "") << "eight threads on one core";
  EXPECT_EQ(launched(2, bound, 1).warning, "") << "one thread was asked for";
  const Cores fair{.machine = 64, .allowed = 8, .parent = 64, .quota = {}};
  EXPECT_EQ(launched(8, fair).warning, "");
  EXPECT_EQ(launched(8, fair).num_threads, 8);
  // A container of eight cores, whose launcher has no more to give.
  EXPECT_EQ(launched(1, {.machine = 64, .allowed = 8, .parent = 8, .quota = {}}).warning, "");
  // taskset, by the user.
  EXPECT_EQ(plan_threads({.cores = bound}).warning, "");
}

TEST(Threads, KeepToTheTimeThatAControlGroupGives) {
  const ThreadPlan plan =
      plan_threads({.cores = {.machine = 64, .allowed = 64, .parent = 64, .quota = 1.5}});
  EXPECT_EQ(plan.num_threads, 2);
  EXPECT_NE(plan.says.find("the time of 1.5"), std::string::npos) << plan.says;
  EXPECT_EQ(launched(2, {.machine = 64, .allowed = 64, .parent = 64, .quota = 0.5}).num_threads, 1);
}

TEST(Threads, AreAsManyAsAskedFor) {
  EXPECT_EQ(plan_threads({.cores = kWhole, .asked = 3}).num_threads, 3);
  const ThreadPlan many = launched(4, {.machine = 8, .allowed = 8, .parent = 8, .quota = {}}, 8);
  EXPECT_EQ(many.num_threads, 8);
  EXPECT_NE(many.warning.find("8 threads of each of 4 ranks share 8 cores"), std::string::npos)
      << many.warning;
  EXPECT_NE(many.warning.find("set it to 2"), std::string::npos) << many.warning;
}

TEST(Threads, AreRefusedWhereTheirNumberIsAMistake) {
  const Cores small{.machine = 2, .allowed = 2, .parent = 2, .quota = {}};
  EXPECT_EQ(plan_threads({.cores = small, .asked = 256}).num_threads, 256);
  EXPECT_EQ(plan_threads({.cores = kWhole, .asked = 1024}).num_threads, 1024);
  for (const int asked : {257, 100000}) {
    try {
      plan_threads({.cores = small, .asked = asked});
      ADD_FAILURE() << asked << " threads on two cores";
    } catch (const ConfigError& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("OMP_NUM_THREADS is " + std::to_string(asked)), std::string::npos)
          << text;
    }
  }
}

}  // namespace
}  // namespace memphis::test
