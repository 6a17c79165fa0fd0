// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/nccl_warnings.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/environment_variable.h"

namespace memphis {
namespace {

using Warnings = std::vector<std::string>;

class NcclWarnings : public testing::Test {
 protected:
  static std::string variable(const char* name) {
    const char* const value = std::getenv(name);
    return value == nullptr ? "" : value;
  }

  // What a test sets of these is gone at its end.
  test::EnvironmentVariable debug_{"NCCL_DEBUG", nullptr};
  test::EnvironmentVariable debug_file_{"NCCL_DEBUG_FILE", nullptr};
};

// As ncclDebugInit and ncclDebugLogV of NCCL's debug.cc do it, where a warning begins with an empty
// line.
TEST_F(NcclWarnings, AreTakenOnceEachInTheirOrder) {
  collect_nccl_warnings();
  EXPECT_EQ(variable("NCCL_DEBUG"), "WARN");
  std::FILE* const file = std::fopen(variable("NCCL_DEBUG_FILE").c_str(), "w");
  ASSERT_NE(file, nullptr);
  setlinebuf(file);
  std::fputs("NCCL version 2.28.9+cuda13.0\n", file);
  EXPECT_EQ(take_nccl_warnings(), Warnings{});
  std::fputs("\n[2026-01-02 03:04:05] host:12:34 [0] ibvwrap.cc:99 NCCL WARN Call failed\n", file);
  for (int i = 0; i < 2; ++i) {
    std::fputs("\nhost:12:35 [0] net_ib.cc:7 (poll) NCCL WARN port 1 is down\n", file);
  }
  EXPECT_EQ(take_nccl_warnings(), (Warnings{"Call failed", "port 1 is down"}));
  EXPECT_EQ(take_nccl_warnings(), Warnings{});
  std::fputs("\nhost:12:35 [0] net.cc:8 NCCL WARN half", file);
  std::fflush(file);
  EXPECT_EQ(take_nccl_warnings(), Warnings{});
  std::fputs(" and half\n", file);
  EXPECT_EQ(take_nccl_warnings(), Warnings{"half and half"});
  std::fclose(file);
}

TEST_F(NcclWarnings, AreLeftToNcclWhereTheUserAsksForThem) {
  setenv("NCCL_DEBUG", "INFO", 1);
  collect_nccl_warnings();
  EXPECT_EQ(variable("NCCL_DEBUG"), "INFO");
  EXPECT_EQ(variable("NCCL_DEBUG_FILE"), "");
  unsetenv("NCCL_DEBUG");
  setenv("NCCL_DEBUG_FILE", "nccl.%h.%p", 1);
  collect_nccl_warnings();
  EXPECT_EQ(variable("NCCL_DEBUG"), "WARN");
  EXPECT_EQ(variable("NCCL_DEBUG_FILE"), "nccl.%h.%p");
}

TEST_F(NcclWarnings, StandInAnErrorFromTheFirstCauseOn) {
  EXPECT_EQ(with_warnings("system error", {}), "system error");
  EXPECT_EQ(with_warnings("system error", {"a"}), "system error: a");
  EXPECT_EQ(with_warnings("system error", {"a", "b", "c"}), "system error: a, then b, then c");
  EXPECT_EQ(with_warnings("system error", {"a", "b", "c", "d", "e"}),
            "system error: a, then b, then 2 more, then e");
}

}  // namespace
}  // namespace memphis
