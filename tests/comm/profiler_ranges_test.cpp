// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/comm/activity.h"
#include "csrc/core/profiler_range.h"

// What a profiler would be told is kept here: these stand in for the functions of the library, which
// leaves its own out where it is linked to these.
namespace {
std::vector<std::string> open_ranges;
std::vector<std::string> told;
}  // namespace

namespace memphis {

void begin_profiler_range(const char* name, std::int64_t number) {
  open_ranges.push_back(number < 0 ? name : std::string(name) + " " + std::to_string(number));
  std::string path;
  for (const std::string& range : open_ranges) {
    path += (path.empty() ? "" : " / ") + range;
  }
  told.push_back(path);
}

void end_profiler_range() {
  ASSERT_FALSE(open_ranges.empty()) << "a range is ended that was not begun";
  open_ranges.pop_back();
}

namespace {

TEST(ProfilerRanges, PhasesLieInMicroBatchesAndTheseInSteps) {
  Activity activity;
  activity.enter("start");
  activity.begin_step(21);
  activity.enter("data");
  activity.begin_micro_batch(0);
  activity.enter("forward", 0);
  activity.enter("forward", 1);
  activity.begin_micro_batch(1, 2);
  activity.enter("backward", 1);
  activity.begin_micro_batch(-1);
  activity.enter("optimizer");
  activity.begin_step(22);
  const std::vector<std::string> expected = {
      "start",
      "step 21",
      "step 21 / data",
      "step 21 / micro-batch 0",
      "step 21 / micro-batch 0 / forward 0",
      "step 21 / micro-batch 0 / forward 1",
      "step 21 / micro-batch 1",
      "step 21 / micro-batch 1 / backward 1",
      "step 21 / optimizer",
      "step 22",
  };
  EXPECT_EQ(told, expected);
}

}  // namespace
}  // namespace memphis
