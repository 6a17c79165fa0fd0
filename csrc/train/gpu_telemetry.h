// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace memphis {

// What a GPU says of itself; of what it does not say, nothing.
struct GpuReading {
  std::optional<double> watts;
  std::optional<double> joules;  // since the telemetry began
  std::optional<double> sm_mhz;
  std::optional<double> celsius;
  std::uint64_t throttle_reasons = 0;  // NVML's bits
};

// Power, energy, clocks, temperature and what slows a GPU down, from NVML, which is opened at run time:
// where there is none, or one that lacks a function, that much less is known, which is no error.
//
// Energy is that of the GPU's own counter. Where it goes backwards (its driver was loaded again), or
// there is none, power times time stands in.
class GpuTelemetry {
 public:
  using Clock = std::chrono::steady_clock;

  // Of the GPU whose UUID has these bytes (gpu_identity()).
  GpuTelemetry(const std::string& library, const std::array<std::int64_t, 2>& identity);
  ~GpuTelemetry();
  GpuTelemetry(const GpuTelemetry&) = delete;
  GpuTelemetry& operator=(const GpuTelemetry&) = delete;

  bool available() const { return device_ != nullptr; }
  GpuReading read() { return read(Clock::now()); }
  GpuReading read(Clock::time_point now);

 private:
  template <class Function>
  Function* find(const char* name) const;
  template <class Value, class Function, class... Arguments>
  std::optional<Value> ask(const char* name, Arguments... arguments) const;

  void* library_ = nullptr;
  void* device_ = nullptr;
  std::optional<std::uint64_t> counter_;  // millijoules, when last read
  std::optional<Clock::time_point> read_at_;
  double joules_ = 0;
};

// What a GPU has been doing over a while, from its readings in the course of it.
struct GpuCourse {
  std::optional<double> watts;         // the mean, by energy
  std::optional<double> sm_mhz;        // the median reading
  std::uint64_t throttle_reasons = 0;  // of any reading
};
class GpuCourseMeter {
 public:
  using Clock = GpuTelemetry::Clock;

  // `telemetry` must outlive it.
  explicit GpuCourseMeter(GpuTelemetry& telemetry) : telemetry_(telemetry) {}
  // A stretch begins; what the GPU did since the last sample does not count.
  void begin(Clock::time_point now = Clock::now());
  // To be called while the GPU is at work, now and then.
  void sample(Clock::time_point now = Clock::now());
  // The stretch ends: its energy counts up to here, and not how an idle GPU is clocked.
  void end(Clock::time_point now = Clock::now());
  GpuCourse course() const;

 private:
  void count_energy(const GpuReading& reading, Clock::time_point now);

  GpuTelemetry& telemetry_;
  Clock::time_point at_;             // of the last reading
  std::optional<double> joules_at_;  // by then
  double joules_ = 0;
  double seconds_ = 0;  // of which they are
  std::vector<double> mhz_;
  std::uint64_t throttle_reasons_ = 0;
};

// "libnvidia-ml.so.1", which comes with the driver.
inline constexpr const char* kNvmlName = "libnvidia-ml.so.1";

// "heat, power limit": NVML's bits in words; those of an idle GPU and of set clocks are none.
std::string describe_throttle(std::uint64_t reasons);

// Of all ranks of a job.
struct GpuSummary {
  std::int64_t num_readings = 0;
  double watts = 0;   // sum
  double joules = 0;  // sum
  double hottest_celsius = 0;
  std::int64_t hottest_rank = -1;
  double slowest_mhz = 0;
  std::int64_t slowest_rank = -1;
  std::uint64_t throttle_reasons = 0;  // of any
  std::int64_t throttled_rank = -1;    // the first with one
};

// A reading as whole numbers, which ranks add up: each its own place, of kReadingWords.
constexpr std::size_t kReadingWords = 6;
void encode(const GpuReading& reading, std::span<std::int64_t> words);
GpuSummary summarize(std::span<const std::int64_t> words_of_ranks);

}  // namespace memphis
