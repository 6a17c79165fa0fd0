// SPDX-License-Identifier: Apache-2.0
#include "bench/op_benchmark.h"

#include <chrono>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "bench/run_op_benchmarks.h"
#include "csrc/core/error.h"

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

// Every fourth call takes long: the mean is far from the median.
void sleep_unevenly(Stream /*stream*/) {
  static int calls = 0;
  const double seconds = ++calls % 4 == 0 ? kLongSleepSeconds : kSleepSeconds;
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
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
    const auto object = nlohmann::json::parse(line);
    objects[object.value("op", "machine") + "/" + object.value("device", "")] = object;
  }
  return objects;
}

TEST(OpBenchmark, MeasuresTheMedianOfCallsAndComparesItWithACopy) {
  std::ostringstream out;
  ASSERT_EQ(run_op_benchmarks("sleep", "cpu", true, out), 0);
  const auto objects = objects_of(out.str());
  ASSERT_EQ(objects.size(), 2U) << out.str();  // "oversleep" does not start with the filter
  const auto& machine = objects.at("machine/cpu");
  const auto& sleep = objects.at("sleep_forward/cpu");
  const double seconds = sleep.at("seconds");
  EXPECT_GE(seconds, kSleepSeconds);
  EXPECT_LT(seconds, kLongSleepSeconds / 6);  // the mean is above a fifth
  EXPECT_GT(sleep.at("relative_sigma").get<double>(), 0.1);
  EXPECT_GE(sleep.at("repeats").get<int>(), 3);
  EXPECT_DOUBLE_EQ(sleep.at("bytes_per_second").get<double>(), kBytes / seconds);
  EXPECT_DOUBLE_EQ(sleep.at("share_of_copy").get<double>(),
                   kBytes / seconds / machine.at("copy_bytes_per_second").get<double>());
  EXPECT_FALSE(sleep.contains("flops_per_second"));  // memory bound
}

TEST(OpBenchmark, ListsWhatThisMachineCannotRun) {
  if (device_available(Device::cuda)) {
    GTEST_SKIP() << "this machine has a GPU, so nothing is absent";
  }
  std::ostringstream out;
  EXPECT_EQ(run_op_benchmarks("sleep", "cuda", false, out), 0);
  EXPECT_NE(out.str().find("not measured (" + device_unavailable_reason()), std::string::npos)
      << out.str();
}

TEST(OpBenchmark, ACaseThatThrowsIsAFailureAndTheOthersAreStillMeasured) {
  std::ostringstream out;
  EXPECT_EQ(run_op_benchmarks("", "cpu", true, out), 1);
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
