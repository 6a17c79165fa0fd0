// SPDX-License-Identifier: Apache-2.0
#include "bench/op_benchmark.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "bench/run_op_benchmarks.h"
#include "csrc/core/error.h"
#include "csrc/core/json.h"

namespace memphis::bench {
namespace {

// So far apart that no machine is busy enough to take one for the other.
constexpr double kSleepSeconds = 0.002;
constexpr double kLongSleepSeconds = 0.3;
constexpr double kBytes = 1e6;

OpBenchmark named(const std::string& op, Device device, const std::function<void(Stream)>& call) {
  return {.op = op,
          .shape = "T=1",
          .device = device,
          .dtype = DType::f32,
          .cost = {.bytes = kBytes},
          .setup = [call] { return call; }};
}

// How long calls took, by themselves: a measurement of one is no shorter, and longer by what the
// machine is busy with.
std::vector<double>& call_seconds() {
  static std::vector<double> seconds;
  return seconds;
}

// Every fourth call takes four times as long.
void sleep_unevenly(Stream /*stream*/) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  const bool is_slow = call_seconds().size() % 4 == 3;
  std::this_thread::sleep_for(
      std::chrono::duration<double>(is_slow ? 4 * kSleepSeconds : kSleepSeconds));
  call_seconds().push_back(std::chrono::duration<double>(Clock::now() - begin).count());
}

const bool g_registered = [] {
  register_op_benchmark(named("sleep_forward", Device::cpu, sleep_unevenly));
  register_op_benchmark(named("sleep_forward", Device::cuda, sleep_unevenly));
  register_op_benchmark(named("oversleep_forward", Device::cpu, sleep_unevenly));
  register_op_benchmark(
      named("broken_forward", Device::cpu, [](Stream) { throw ContractError("operand is odd"); }));
  register_op_benchmark(named(
      "large_forward", Device::cpu, [](Stream) { throw PreflightError("not enough memory"); }));
  return true;
}();

// The objects of a --json run, those of cases by op and device, the machines by device.
std::map<std::string, nlohmann::json> objects_of(const std::string& output) {
  std::map<std::string, nlohmann::json> objects;
  std::istringstream lines(output);
  for (std::string line; std::getline(lines, line);) {
    const auto object = parse_json(line).value();
    objects[object.value("op", "machine") + "/" + object.value("device", "")] = object;
  }
  return objects;
}

TEST(OpBenchmark, MeasuresTheMedianOfCallsAndComparesItWithACopy) {
  std::ostringstream out;
  call_seconds().clear();
  run_op_benchmarks("sleep", "cpu", true, out);
  const auto objects = objects_of(out.str());
  ASSERT_EQ(objects.size(), 2U) << out.str();  // "oversleep" does not start with the filter
  const auto& machine = objects.at("machine/cpu");
  const auto& sleep = objects.at("sleep_forward/cpu");
  const double seconds = sleep.at("seconds");
  const auto repeats = sleep.at("repeats").get<std::ptrdiff_t>();
  EXPECT_GE(repeats, 3);
  EXPECT_EQ(repeats % 2, 1);
  EXPECT_GT(sleep.at("relative_sigma").get<double>(), 0);
  // The last calls are the measured ones, those before them warmed up. Half of the measured ones
  // took no longer than the median: at least the shorter half of the calls themselves.
  ASSERT_GE(call_seconds().size(), static_cast<std::size_t>(repeats));
  std::vector<double> measured(call_seconds().end() - repeats, call_seconds().end());
  std::sort(measured.begin(), measured.end());
  EXPECT_GE(seconds, measured[measured.size() / 2]);
  EXPECT_DOUBLE_EQ(sleep.at("bytes_per_second").get<double>(), kBytes / seconds);
  EXPECT_DOUBLE_EQ(sleep.at("share_of_copy").get<double>(),
                   kBytes / seconds / machine.at("copy_bytes_per_second").get<double>());
  EXPECT_FALSE(sleep.contains("flops_per_second"));  // memory bound
}

TEST(OpBenchmark, ADeviceThatIsAbsentIsRefusedByNameAndOtherwisePassedOver) {
  if (device_available(Device::cuda)) {
    GTEST_SKIP() << "this machine has a GPU, so nothing is absent";
  }
  std::ostringstream out;
  EXPECT_THROW(run_op_benchmarks("sleep", "cuda", true, out), PreflightError);
  EXPECT_EQ(out.str(), "");
  run_op_benchmarks("sleep", "all", true, out);
  const auto objects = objects_of(out.str());
  EXPECT_EQ(objects.count("sleep_forward/cpu"), 1U);
  EXPECT_EQ(objects.count("sleep_forward/cuda"), 0U);
}

TEST(OpBenchmark, NothingMeasuredIsAnError) {
  std::ostringstream out;
  EXPECT_THROW(run_op_benchmarks("large", "cpu", true, out), PreflightError);
  EXPECT_EQ(objects_of(out.str()).at("large_forward/cpu").at("status"), "not measured");
}

TEST(OpBenchmark, ACaseThatThrowsIsAFailureAndTheOthersAreStillMeasured) {
  std::ostringstream out;
  EXPECT_THROW(run_op_benchmarks("", "cpu", true, out), Error);
  const auto objects = objects_of(out.str());
  const auto& broken = objects.at("broken_forward/cpu");
  EXPECT_EQ(broken.at("status"), "failed");
  EXPECT_EQ(broken.at("reason"), "operand is odd");
  const auto& large = objects.at("large_forward/cpu");
  EXPECT_EQ(large.at("status"), "not measured");  // by this machine: not a failure of the op
  EXPECT_EQ(large.at("reason"), "not enough memory");
  EXPECT_EQ(objects.at("sleep_forward/cpu").at("status"), "measured");
}

TEST(OpBenchmark, AFilterOrADeviceThatNamesNothingIsAConfigError) {
  std::ostringstream out;
  EXPECT_THROW(run_op_benchmarks("nap", "all", false, out), ConfigError);
  EXPECT_THROW(run_op_benchmarks("", "gpu", false, out), ConfigError);
  EXPECT_EQ(out.str(), "");
}

}  // namespace
}  // namespace memphis::bench
