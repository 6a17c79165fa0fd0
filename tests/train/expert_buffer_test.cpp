// SPDX-License-Identifier: Apache-2.0
//
// A job whose experts have room for less than arrives: every rank ends, the reason names a number,
// with such numbers the job gets to its end, and no row is ever dropped to make it fit.
#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/layout_run.h"
#include "tests/support/tiny_run.h"

namespace memphis::test {
namespace {

constexpr int kNumSteps = 10;
const std::string kKey = "parallel.expert_buffer";

Layout with_buffer(Layout layout, const std::string& buffer) {
  layout.overrides.push_back(kKey + "=" + buffer);
  return layout;
}

struct Ended {
  std::vector<ExitCode> codes;  // of each rank that failed
  std::vector<std::string> reasons;
  std::string first_reason;  // the job's
  ExitCode first_code = ExitCode::done;
  int num_steps = 0;  // done by all
};

Ended run_to_the_end(const Layout& layout) {
  const TemporaryDirectory directory;
  const std::string yaml = tiny_yaml(directory);
  Ended ended;
  std::mutex mutex;
  try {
    on_ranks(Ranks::threads, layout.num_ranks, [&](World& world) {
      try {
        RankRun run(world, yaml, run_overrides(layout, "f64"));
        for (int step = 0; step < kNumSteps; ++step) {
          run.trainer().step();
          if (world.rank() == 0) {
            ended.num_steps = step + 1;
          }
        }
        run.trainer().validation_loss();  // its rows want room too
      } catch (const Error& error) {
        const std::lock_guard lock(mutex);
        ended.codes.push_back(error.code());
        ended.reasons.emplace_back(error.what());
        throw;
      }
    });
  } catch (const Error& error) {
    ended.first_code = error.code();
    ended.first_reason = error.what();
  }
  return ended;
}

// What a reason says to raise the number to.
std::string named_number(const std::string& reason) {
  const std::string before = "raise " + kKey + " to ";
  const std::size_t at = reason.find(before);
  if (at == std::string::npos) {
    return {};
  }
  const std::size_t begin = at + before.size();
  return reason.substr(begin, reason.find_first_not_of("0123456789.", begin) - begin);
}

// With the number that the reason names the job gets as far as before at least; routing that is
// more uneven in another group, or grows so, names a higher one. With the last number it does what
// it does with room for every case, to the bit: nothing was left out.
void expect_numbers_to_work(const Layout& layout, Ended ended) {
  double number = 1;
  while (ended.first_code != ExitCode::done) {
    const std::string named = named_number(ended.first_reason);
    ASSERT_FALSE(named.empty()) << ended.first_reason;
    ASSERT_GT(std::stod(named), number) << ended.first_reason;
    number = std::stod(named);
    const Ended again = run_to_the_end(with_buffer(layout, named));
    ASSERT_GE(again.num_steps, ended.num_steps) << again.first_reason;
    ended = again;
  }
  const Outcome actual =
      train(with_buffer(layout, std::to_string(number)), Ranks::threads, "f64", kNumSteps);
  const Outcome expected = train(layout, Ranks::threads, "f64", kNumSteps);
  EXPECT_EQ(actual.losses, expected.losses);
  EXPECT_EQ(actual.grad_norms, expected.grad_norms);
  EXPECT_TRUE(actual.final == expected.final) << "weights differ";
}

TEST(ExpertBuffer, EndsEveryRankWithANumberThatWorks) {
  // All ranks are one group of experts, so all see the same.
  const Layout layout = test::layout("data2_tensor2_expert4", 2, 2, 4, 1);
  const Ended ended = run_to_the_end(with_buffer(layout, "1"));
  ASSERT_EQ(ended.reasons.size(), 4U) << "every rank ends";
  for (std::size_t i = 0; i < ended.reasons.size(); ++i) {
    EXPECT_EQ(ended.codes[i], ExitCode::config);
    EXPECT_EQ(ended.reasons[i], ended.reasons[0]);
  }
  EXPECT_NE(ended.reasons[0].find("no row is dropped"), std::string::npos) << ended.reasons[0];
  expect_numbers_to_work(layout, ended);
}

TEST(ExpertBuffer, EndsRanksOfOtherGroupsToo) {
  // Two groups of two ranks and, with cut experts, of four; one group may have room where another
  // has not.
  for (const Layout& layout : {test::layout("data4_expert2", 4, 1, 2, 1),
                               test::layout("data4_tensor2_expert2_split2", 4, 2, 2, 2)}) {
    const Ended ended = run_to_the_end(with_buffer(layout, "1"));
    EXPECT_EQ(ended.reasons.size(), static_cast<std::size_t>(layout.num_ranks)) << layout.name;
    for (std::size_t i = 0; i < ended.reasons.size(); ++i) {
      EXPECT_TRUE(ended.codes[i] == ExitCode::config || ended.codes[i] == ExitCode::rank_lost)
          << ended.reasons[i];
      EXPECT_FALSE(named_number(ended.reasons[i]).empty()) << ended.reasons[i];
    }
    EXPECT_EQ(ended.first_code, ExitCode::config) << "the job's code is the reason's";
    expect_numbers_to_work(layout, ended);
  }
}

}  // namespace
}  // namespace memphis::test
