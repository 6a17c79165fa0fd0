// SPDX-License-Identifier: Apache-2.0
//
// What the report finds in runs that went wrong, and how it draws what no plot is made for.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <spdlog/fmt/fmt.h>

#include "csrc/core/error.h"
#include "csrc/report/findings.h"
#include "csrc/report/page.h"
#include "csrc/report/plot.h"
#include "csrc/report/run_history.h"
#include "tests/support/temporary_directory.h"

namespace memphis::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::string step_line(std::int64_t step, double loss, double norm = 1, double rate = 1000) {
  return fmt::format(
      "{{\"step\":{},\"time\":\"2026-01-31T00:00:00.000Z\",\"loss\":{},\"grad_norm\":{},"
      "\"seconds\":1,\"tokens\":1000,\"tokens_per_second\":{},\"model_seconds\":0.9}}\n",
      step,
      loss,
      norm,
      rate);
}

std::string start_line(std::int64_t step, std::int64_t again, const std::string& time) {
  return fmt::format(
      "{{\"step\":{},\"time\":\"{}\",\"steps_again\":{},\"last_step\":200,\"ranks\":1}}\n",
      step,
      time,
      again);
}

std::string look_line(std::int64_t step, double effective) {
  return fmt::format(
      "{{\"step\":{},\"expert_load\":[[1,1,1,1],[1,1,1,1]],\"effective_experts\":[4,{}],"
      "\"router_entropy\":[1,1],\"kept_probability\":[0.5,0.5],\"slowest_rank\":3,"
      "\"slowest_rank_seconds\":1.5,\"median_rank_seconds\":1}}\n",
      step,
      effective);
}

constexpr const char* kConfig =
    "model: {vocab_size: 259, num_layers: 2, d_model: 32, num_heads: 4, num_kv_heads: 2, ffn_dim: "
    "48, num_experts: 4, experts_per_token: 1}\nrun: {dir: x, device: cpu}\n"
    "batch: {sequence_length: 32, micro_batch: 4, global_batch: 8}\nschedule: {steps: 200, "
    "warmup_steps: 5}\nparallel: {data: 1}\n";

class Runs : public testing::Test {
 protected:
  RunHistory read(const std::string& metrics, bool with_config = true) {
    directory_.write("metrics.jsonl", metrics);
    if (with_config) {
      directory_.write("config.yaml", kConfig);
    }
    return read_run(directory_.path());
  }
  static const Finding* find(const std::vector<Finding>& findings, const std::string& title) {
    const auto found = std::find_if(findings.begin(), findings.end(), [&](const Finding& finding) {
      return finding.title.find(title) != std::string::npos;
    });
    return found == findings.end() ? nullptr : &*found;
  }
  static std::string falling(std::int64_t steps) {
    std::string text;
    for (std::int64_t step = 1; step <= steps; ++step) {
      text += step_line(step, 2 + 3.0 / static_cast<double>(step));
    }
    return text;
  }

  TemporaryDirectory directory_;
};

TEST_F(Runs, OfWhichNothingStandsOutSaySo) {
  const RunHistory run =
      read(start_line(0, 0, "2026-01-01T00:00:00.000Z") + falling(200) +
           "{\"step\":200,\"time\":\"2026-01-02\",\"end\":\"done\",\"done\":true}\n");
  ASSERT_TRUE(run.config);
  EXPECT_EQ(run.last_step(), 200);
  EXPECT_TRUE(find_what_stands_out(run).empty());
  EXPECT_NE(report_page({run}).find("<b>Nothing</b>"), std::string::npos);
}

TEST_F(Runs, NameTheStepOfAnExplosionAndItsNumber) {
  std::string text = falling(100);
  for (std::int64_t step = 101; step <= 120; ++step) {
    text += step_line(step, step == 107 ? 9.25 : 7.0);
  }
  const auto findings = find_what_stands_out(read(text));
  ASSERT_FALSE(findings.empty());
  EXPECT_EQ(findings.front().title, "Loss exploded") << "the gravest comes first";
  EXPECT_EQ(findings.front().step, 101);
  EXPECT_NE(findings.front().number.find("9.25"), std::string::npos) << findings.front().number;
}

// One step far off the others, of which the step is named; what is worse stands before it.
TEST_F(Runs, NameASpikeAndWhatIsGraverFirst) {
  const auto text = [](std::int64_t steps) {
    std::string lines;
    for (std::int64_t step = 1; step <= steps; ++step) {
      // Losses differ a little, as they do: deviations from that are counted.
      const double usual = 2 + 0.02 * static_cast<double>(step * 7 % 5);
      lines += step_line(step, step == 150 ? 4.5 : usual, step == 149 ? 50 : 1);
    }
    return lines;
  };
  const auto spiked = find_what_stands_out(read(text(250)));
  const Finding* const spike = find(spiked, "Loss spike");
  ASSERT_NE(spike, nullptr);
  EXPECT_EQ(spike->step, 150);

  std::string exploded = text(250);
  for (std::int64_t step = 251; step <= 300; ++step) {
    exploded += step_line(step, 9.0);
  }
  const auto findings = find_what_stands_out(read(exploded));
  const Finding* const gradient = find(findings, "Gradient spike");
  ASSERT_NE(gradient, nullptr);
  EXPECT_EQ(gradient->step, 149);
  EXPECT_EQ(findings.front().title, "Loss exploded");
}

TEST_F(Runs, NameWhatIsNoNumber) {
  const auto findings = find_what_stands_out(
      read(falling(20) + "{\"step\":21,\"loss\":NaN}\n{\"step\":22,\"loss\":null}\n"));
  const Finding* const finding = find(findings, "not a number");
  ASSERT_NE(finding, nullptr);
  EXPECT_EQ(finding->step, 21);
  EXPECT_EQ(finding->weight, Finding::Weight::bad);
}

TEST_F(Runs, SayWhyTheyEnded) {
  const auto findings = find_what_stands_out(
      read(start_line(0, 0, "2026-01-01T00:00:00.000Z") + falling(50) +
           "{\"step\":50,\"time\":\"2026-01-02T00:00:00.000Z\",\"end\":\"step 51 has loss nan "
           "(training diverged); go back\",\"done\":false}\n"));
  const Finding* const finding = find(findings, "diverged");
  ASSERT_NE(finding, nullptr);
  EXPECT_EQ(finding->step, 50);
  EXPECT_NE(finding->advice.find("step 51 has loss nan"), std::string::npos);
  EXPECT_EQ(find(findings, "without a word"), nullptr);
  EXPECT_NE(find(find_what_stands_out(read(falling(50))), "without a word"), nullptr);
}

TEST_F(Runs, CountSpikesAndNameTheWorst) {
  std::string text;
  for (std::int64_t step = 1; step <= 200; ++step) {
    const bool spike = step == 60 || step == 150;
    text +=
        step_line(step, spike ? 3.0 + static_cast<double>(step) / 100 : 2.0, step == 149 ? 40 : 1);
  }
  const auto findings = find_what_stands_out(read(text));
  const Finding* const loss = find(findings, "2 loss spikes");
  ASSERT_NE(loss, nullptr);
  EXPECT_EQ(loss->step, 150);
  EXPECT_EQ(loss->number, "4.5 nats, where 2 was usual");
  const Finding* const norm = find(findings, "Gradient spike");
  ASSERT_NE(norm, nullptr);
  EXPECT_EQ(norm->step, 149);
  EXPECT_EQ(norm->number, "norm 40, 40 times what was usual");
}

TEST_F(Runs, NameTheLayerOfACollapsedRouterAndASlowRank) {
  std::string text;
  for (std::int64_t step = 1; step <= 10; ++step) {
    text += step_line(step, 2) + look_line(step, step > 4 ? 1.25 : 4);
  }
  const auto findings = find_what_stands_out(read(text));
  const Finding* const collapse = find(findings, "Router of layer 1 collapsed");
  ASSERT_NE(collapse, nullptr);
  EXPECT_EQ(collapse->step, 7) << "the third look in a row";
  EXPECT_EQ(collapse->number, "1.2 effective experts of 4 at the lowest");
  const Finding* const rank = find(findings, "Rank 3 is slow");
  ASSERT_NE(rank, nullptr);
  EXPECT_NE(rank->number.find("1.50 times"), std::string::npos) << rank->number;
}

TEST_F(Runs, CountStepsThatAreDoneTwice) {
  std::string text = start_line(0, 0, "2026-01-01T00:00:00.000Z") + falling(40) +
                     start_line(40, 13, "2026-01-01T01:00:00.000Z");
  const RunHistory dropped = read(text);
  EXPECT_EQ(find(find_what_stands_out(dropped), "Restart")->number, "13 steps done twice");
  // A file whose writer did not drop them: the last word counts.
  const RunHistory doubled = read(falling(40) + step_line(31, 9) + step_line(32, 8));
  EXPECT_EQ(doubled.steps_again, 10);
  ASSERT_EQ(doubled.steps.size(), 32U);
  EXPECT_EQ(doubled[Column::loss][30], 9);
}

TEST_F(Runs, NameAStallAndALossOfSpeed) {
  std::string text;
  for (std::int64_t step = 1; step <= 200; ++step) {
    text += fmt::format("{{\"step\":{},\"loss\":2,\"seconds\":{},\"tokens_per_second\":{}}}\n",
                        step,
                        step == 77 ? 190.0 : 1.0,
                        step > 140 ? 600 : 1000);
  }
  const auto findings = find_what_stands_out(read(text));
  const Finding* const stall = find(findings, "Stall");
  ASSERT_NE(stall, nullptr);
  EXPECT_EQ(stall->step, 77);
  EXPECT_EQ(stall->number, "3m10s for a step, where 1 s were usual");
  const Finding* const drop = find(findings, "Throughput dropped");
  ASSERT_NE(drop, nullptr);
  EXPECT_EQ(drop->step, 141);
  EXPECT_EQ(drop->number, "600 tokens/s, 40 % below 1000");
}

TEST_F(Runs, PassDamagedLinesOverAndOneThatIsBeingWritten) {
  const RunHistory run = read(falling(3) + "garbage\n[1]\n{\"step\":\"x\"}\n{\"step\":5}\n" +
                              "{\"step\":1e300,\"loss\":1}\n{\"step\":-1,\"loss\":1}\n" +
                              step_line(4, 2) + "{\"step\":5,\"lo");
  EXPECT_EQ(run.steps.size(), 4U);
  EXPECT_EQ(run.damaged_lines, 5) << "a line of another version is none";
  EXPECT_EQ(run.first_damaged_line, 4);
  EXPECT_NE(find(find_what_stands_out(run), "Damaged"), nullptr);
}

TEST_F(Runs, WithoutMetricsAreNone) {
  EXPECT_THROW(read_run(directory_.path()), DataError);
  const RunHistory empty = read("", false);
  EXPECT_NE(report_page({empty}).find("No step is done yet"), std::string::npos);
}

TEST_F(Runs, CannotPutMarkupOnThePage) {
  RunHistory run =
      read(step_line(1, 2) + "{\"step\":1,\"sample\":\"</pre><script>alert(1)</script>\"}\n");
  run.name = "<img src=x>\"'&";
  run.starts.push_back({});
  run.starts.back().device = "<b>cpu</b>";
  const std::string page = report_page({run, run});
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
  EXPECT_EQ(page.find("<img"), std::string::npos);
  EXPECT_EQ(page.find("<b>cpu"), std::string::npos);
  EXPECT_NE(page.find("&lt;script&gt;alert(1)"), std::string::npos);
}

TEST(Decimated, KeepsEachSpikeAndEachGap) {
  Points points;
  constexpr std::int64_t kSteps = 1'000'000;
  for (std::int64_t step = 1; step <= kSteps; ++step) {
    points.add(static_cast<double>(step),
               step == 123'457   ? 99
               : step == 777'777 ? -5
               : step == 500'001 ? kNaN
                                 : 1);
  }
  const Points few = decimated(points, 400);
  EXPECT_LE(few.x.size(), 1300U);
  const auto has = [&](double x, double y) {
    for (std::size_t i = 0; i < few.x.size(); ++i) {
      if (few.x[i] == x && (few.y[i] == y || (std::isnan(y) && std::isnan(few.y[i])))) {
        return true;
      }
    }
    return false;
  };
  EXPECT_TRUE(has(123'457, 99));
  EXPECT_TRUE(has(777'777, -5));
  EXPECT_TRUE(has(500'001, kNaN));
  EXPECT_EQ(few.x.front(), 1);
  EXPECT_EQ(few.x.back(), kSteps);
  EXPECT_TRUE(std::is_sorted(few.x.begin(), few.x.end()));
}

TEST(Ticks, AreRoundAndWithin) {
  EXPECT_EQ(round_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(round_ticks(0, 203, 5), (std::vector<double>{0, 50, 100, 150, 200}));
  EXPECT_EQ(round_ticks(3, 3, 5), (std::vector<double>{3}));
  EXPECT_EQ(log_ticks(0.9, 1100), (std::vector<double>{1, 10, 100, 1000}));
  EXPECT_EQ(short_number(12'400), "12.4k");
  EXPECT_EQ(short_number(0.00031), "0.00031");
  EXPECT_EQ(short_number(9'999'999), "10M");
}

// A curve breaks where a value is missing, and one point is a dot.
TEST(DrawnPlot, ShowsGapsAndSinglePoints) {
  const Plot gap{"t", "", "", {{"a", 0, false, false, {{1, 2, 3, 4}, {1, 2, kNaN, 3}}}}, {}, false};
  const std::string svg = draw(gap);
  const std::size_t begin = svg.find(" d=\"M") + 4;
  const std::string path = svg.substr(begin, svg.find('"', begin) - begin);
  EXPECT_EQ(std::count(path.begin(), path.end(), 'M'), 2) << path;
  const Plot one{"t", "", "", {{"a", 0, false, false, {{1}, {5}}}}, {}, false};
  EXPECT_NE(draw(one).find("<circle"), std::string::npos);
  const Plot none{"t", "", "", {{"a", 0, false, false, {{1}, {kNaN}}}}, {}, false};
  EXPECT_EQ(draw(none), "");
  const Plot wide{"t", "", "", {{"a", 0, false, false, {{1, 2}, {0.01, 1000}}}}, {}, false};
  EXPECT_NE(draw(wide).find("logarithmic"), std::string::npos);
}

}  // namespace
}  // namespace memphis::test
