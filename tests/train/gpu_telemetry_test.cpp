// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/gpu_telemetry.h"

#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <gtest/gtest.h>

namespace memphis::test {
namespace {

using namespace std::chrono_literals;

std::array<std::int64_t, 2> identity() {
  std::array<std::int64_t, 2> words{};
  const unsigned char bytes[16] = {0x1b, 0x9a, 0x4a, 0x1c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0xff};
  std::memcpy(words.data(), bytes, sizeof(bytes));
  return words;
}

class FakeNvml : public testing::Test {
 protected:
  FakeNvml() : library_(dlopen(MEMPHIS_FAKE_NVML, RTLD_NOW)) {
    set<unsigned long long>("fake_millijoules", 5'000'000);
    set<unsigned>("fake_milliwatts", 400'000);
    set<unsigned>("fake_celsius", 61);
    set<unsigned>("fake_mhz", 1755);
    set<int>("fake_energy_status", 0);
  }
  ~FakeNvml() override { dlclose(library_); }

  template <class T>
  void set(const char* name, T value) {
    *static_cast<T*>(dlsym(library_, name)) = value;
  }

  void* library_;
};

TEST_F(FakeNvml, IsAskedForTheGpuOfTheRank) {
  GpuTelemetry telemetry(MEMPHIS_FAKE_NVML, identity());
  ASSERT_TRUE(telemetry.available());
  EXPECT_STREQ(static_cast<const char*>(dlsym(library_, "fake_uuid")),
               "GPU-1b9a4a1c-0001-0203-0405-060708090aff");
  const GpuReading reading = telemetry.read();
  EXPECT_EQ(reading.watts, 400);
  EXPECT_EQ(reading.celsius, 61);
  EXPECT_EQ(reading.sm_mhz, 1755);
  EXPECT_EQ(reading.joules, 0) << "counted from the beginning, not from the driver's";
  EXPECT_EQ(reading.throttle_reasons, 0U) << "which this library does not know";
}

TEST_F(FakeNvml, CountsEnergyThroughACounterThatBeginsAgain) {
  GpuTelemetry telemetry(MEMPHIS_FAKE_NVML, identity());
  const auto now = GpuTelemetry::Clock::now();
  set<unsigned long long>("fake_millijoules", 5'250'000);
  EXPECT_DOUBLE_EQ(telemetry.read(now).joules.value(), 250);
  set<unsigned long long>("fake_millijoules", 7'000);  // less than before
  EXPECT_DOUBLE_EQ(telemetry.read(now + 2s).joules.value(), 250 + 2 * 400);
  set<unsigned long long>("fake_millijoules", 107'000);
  EXPECT_DOUBLE_EQ(telemetry.read(now + 3s).joules.value(), 250 + 2 * 400 + 100);
}

TEST_F(FakeNvml, TakesPowerTimesTimeWhereThereIsNoCounter) {
  set<int>("fake_energy_status", 3);  // not supported
  GpuTelemetry telemetry(MEMPHIS_FAKE_NVML, identity());
  const auto now = GpuTelemetry::Clock::now();
  const double before = telemetry.read(now).joules.value();
  EXPECT_NEAR(telemetry.read(now + 10s).joules.value() - before, 4000, 1e-6);
}

TEST_F(FakeNvml, TellsWhatWasDrawnOverAWhileAndAtWhichClock) {
  GpuTelemetry telemetry(MEMPHIS_FAKE_NVML, identity());
  const auto now = GpuTelemetry::Clock::now();
  set<unsigned long long>("fake_millijoules", 6'000'000);  // before
  GpuCourseMeter meter(telemetry);
  meter.begin(now);
  EXPECT_FALSE(meter.course().watts.has_value()) << "no time has passed";
  EXPECT_FALSE(meter.course().sm_mhz.has_value());
  int second = 0;
  for (const unsigned mhz : {1980U, 345U, 1755U, 1700U, 1740U}) {
    set<unsigned>("fake_mhz", mhz);
    set<unsigned long long>("fake_millijoules", 6'000'000ULL + 650'000ULL * ++second);
    set<unsigned>("fake_milliwatts", 90'000);  // at the time of the reading, in which it rests
    meter.sample(now + second * 1s);
  }
  EXPECT_DOUBLE_EQ(meter.course().watts.value(), 650);
  EXPECT_DOUBLE_EQ(meter.course().sm_mhz.value(), 1740);
  // Between two stretches it does something else.
  set<unsigned long long>("fake_millijoules", 90'000'000);
  meter.begin(now + 60s);
  set<unsigned long long>("fake_millijoules", 90'000'000 + 5 * 450'000);
  meter.sample(now + 65s);
  EXPECT_DOUBLE_EQ(meter.course().watts.value(), (5 * 650 + 5 * 450) / 10.0);
  EXPECT_EQ(meter.course().throttle_reasons, 0U);
}

TEST(GpuTelemetry, IsWithoutNvmlNoError) {
  GpuTelemetry telemetry("libno-such-nvml.so", identity());
  EXPECT_FALSE(telemetry.available());
  const GpuReading reading = telemetry.read();
  EXPECT_FALSE(reading.watts || reading.joules || reading.sm_mhz || reading.celsius);
  GpuCourseMeter meter(telemetry);
  const auto now = GpuTelemetry::Clock::now();
  meter.begin(now);
  meter.sample(now + 1s);
  EXPECT_FALSE(meter.course().watts || meter.course().sm_mhz);
}

TEST(GpuSummary, NamesTheHotRankAndTheOneThatIsHeldBack) {
  std::vector<std::int64_t> words(4 * kReadingWords);
  const std::span<std::int64_t> all(words);
  encode({.watts = 300, .joules = 10, .sm_mhz = 1700, .celsius = 60},
         all.subspan(0, kReadingWords));
  encode({.watts = 500, .joules = 20, .sm_mhz = 1200, .celsius = 88, .throttle_reasons = 0x24},
         all.subspan(2 * kReadingWords, kReadingWords));
  encode({.watts = 310, .joules = 30, .sm_mhz = 1710, .celsius = 62, .throttle_reasons = 0x3},
         all.subspan(3 * kReadingWords, kReadingWords));  // idle, set clocks
  const GpuSummary summary = summarize(words);
  EXPECT_EQ(summary.num_readings, 3) << "rank 1 has no NVML";
  EXPECT_DOUBLE_EQ(summary.watts, 1110);
  EXPECT_DOUBLE_EQ(summary.joules, 60);
  EXPECT_EQ(summary.hottest_rank, 2);
  EXPECT_DOUBLE_EQ(summary.hottest_celsius, 88);
  EXPECT_EQ(summary.slowest_rank, 2);
  EXPECT_EQ(summary.throttled_rank, 2);
  EXPECT_EQ(describe_throttle(summary.throttle_reasons), "power limit, heat");
}

}  // namespace
}  // namespace memphis::test
