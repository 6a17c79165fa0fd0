// SPDX-License-Identifier: Apache-2.0
#include "csrc/train/gpu_telemetry.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include <dlfcn.h>
#include <spdlog/fmt/fmt.h>

namespace memphis {
namespace {

// NVML's C interface, as far as it is asked here: NVIDIA Management Library API reference.
constexpr int kSuccess = 0;
constexpr int kSmClock = 1;      // NVML_CLOCK_SM
constexpr int kTemperature = 0;  // NVML_TEMPERATURE_GPU
using Handle = void*;

// "GPU-1b9a4a1c-...": the bytes of a UUID, in groups of 4, 2, 2, 2 and 6.
std::string uuid_text(const std::array<std::int64_t, 2>& identity) {
  std::array<unsigned char, sizeof(identity)> bytes{};
  std::memcpy(bytes.data(), identity.data(), sizeof(identity));
  std::string text = "GPU-";
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const bool begins_group = i == 4 || i == 6 || i == 8 || i == 10;
    text += fmt::format("{}{:02x}", begins_group ? "-" : "", bytes[i]);
  }
  return text;
}

}  // namespace

template <class Function>
Function* GpuTelemetry::find(const char* name) const {
  return library_ == nullptr ? nullptr : reinterpret_cast<Function*>(::dlsym(library_, name));
}

template <class Value, class Function, class... Arguments>
std::optional<Value> GpuTelemetry::ask(const char* name, Arguments... arguments) const {
  Function* const function = find<Function>(name);
  Value value{};
  if (device_ == nullptr || function == nullptr ||
      function(device_, arguments..., &value) != kSuccess) {
    return std::nullopt;
  }
  return value;
}

GpuTelemetry::GpuTelemetry(const std::string& library,
                           const std::array<std::int64_t, 2>& identity) {
  library_ = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  const auto init = find<int()>("nvmlInit_v2");
  const auto by_uuid = find<int(const char*, Handle*)>("nvmlDeviceGetHandleByUUID");
  if (init == nullptr || by_uuid == nullptr || init() != kSuccess ||
      by_uuid(uuid_text(identity).c_str(), &device_) != kSuccess) {
    device_ = nullptr;
    return;
  }
  read();  // from here on energy is counted
}

GpuTelemetry::~GpuTelemetry() {
  if (device_ != nullptr) {
    if (const auto shutdown = find<int()>("nvmlShutdown")) {
      shutdown();
    }
  }
  if (library_ != nullptr) {
    ::dlclose(library_);
  }
}

GpuReading GpuTelemetry::read(Clock::time_point now) {
  GpuReading reading;
  if (device_ == nullptr) {
    return reading;
  }
  constexpr double kMilli = 1e-3;
  using U32 = int(Handle, unsigned*);
  using U32Of = int(Handle, int, unsigned*);
  using U64 = int(Handle, unsigned long long*);
  if (const auto milliwatts = ask<unsigned, U32>("nvmlDeviceGetPowerUsage")) {
    reading.watts = *milliwatts * kMilli;
  }
  if (const auto mhz = ask<unsigned, U32Of>("nvmlDeviceGetClockInfo", kSmClock)) {
    reading.sm_mhz = *mhz;
  }
  if (const auto celsius = ask<unsigned, U32Of>("nvmlDeviceGetTemperature", kTemperature)) {
    reading.celsius = *celsius;
  }
  reading.throttle_reasons =
      ask<unsigned long long, U64>("nvmlDeviceGetCurrentClocksThrottleReasons").value_or(0);
  const auto counter = ask<unsigned long long, U64>("nvmlDeviceGetTotalEnergyConsumption");
  if (counter && counter_ && *counter >= *counter_) {
    joules_ += static_cast<double>(*counter - *counter_) * kMilli;
  } else if (reading.watts && read_at_) {
    joules_ += *reading.watts * std::chrono::duration<double>(now - *read_at_).count();
  }
  if (counter || reading.watts) {
    reading.joules = joules_;
  }
  counter_ = counter;
  read_at_ = now;
  return reading;
}

void GpuCourseMeter::begin(Clock::time_point now) {
  joules_at_ = telemetry_.read(now).joules;
  at_ = now;
}

void GpuCourseMeter::count_energy(const GpuReading& reading, Clock::time_point now) {
  if (reading.joules && joules_at_) {
    joules_ += *reading.joules - *joules_at_;
    seconds_ += std::chrono::duration<double>(now - at_).count();
  }
  joules_at_ = reading.joules;
  at_ = now;
}

void GpuCourseMeter::end(Clock::time_point now) {
  count_energy(telemetry_.read(now), now);
}

void GpuCourseMeter::sample(Clock::time_point now) {
  const GpuReading reading = telemetry_.read(now);
  count_energy(reading, now);
  if (reading.sm_mhz) {
    mhz_.push_back(*reading.sm_mhz);
  }
  throttle_reasons_ |= reading.throttle_reasons;
}

GpuCourse GpuCourseMeter::course() const {
  GpuCourse course{.watts = {}, .sm_mhz = {}, .throttle_reasons = throttle_reasons_};
  if (seconds_ > 0) {
    course.watts = joules_ / seconds_;
  }
  if (!mhz_.empty()) {
    std::vector<double> sorted = mhz_;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    course.sm_mhz = *middle;
  }
  return course;
}

std::string describe_throttle(std::uint64_t reasons) {
  struct Reason {
    std::uint64_t bit;
    const char* name;
  };
  constexpr std::array kReasons = {Reason{0x04, "power limit"},
                                   Reason{0x08, "hardware slowdown"},
                                   Reason{0x10, "sync boost"},
                                   Reason{0x20, "heat"},
                                   Reason{0x40, "heat, by hardware"},
                                   Reason{0x80, "power brake"}};
  std::string text;
  for (const auto& [bit, name] : kReasons) {
    if ((reasons & bit) != 0) {
      text += fmt::format("{}{}", text.empty() ? "" : ", ", name);
    }
  }
  return text;
}

void encode(const GpuReading& reading, std::span<std::int64_t> words) {
  const auto milli = [](const std::optional<double>& value) {
    constexpr double kThousand = 1e3;
    return value ? std::llround(*value * kThousand) : -1;
  };
  words[0] = reading.watts || reading.joules || reading.sm_mhz || reading.celsius ? 1 : 0;
  words[1] = milli(reading.watts);
  words[2] = milli(reading.joules);
  words[3] = milli(reading.sm_mhz);
  words[4] = milli(reading.celsius);
  words[5] = static_cast<std::int64_t>(reading.throttle_reasons);
}

GpuSummary summarize(std::span<const std::int64_t> words_of_ranks) {
  constexpr double kMilli = 1e-3;
  GpuSummary summary;
  for (std::size_t rank = 0; rank * kReadingWords < words_of_ranks.size(); ++rank) {
    const auto words = words_of_ranks.subspan(rank * kReadingWords, kReadingWords);
    if (words[0] == 0) {
      continue;
    }
    const auto number = static_cast<std::int64_t>(rank);
    const auto value = [&](std::size_t i) { return static_cast<double>(words[i]) * kMilli; };
    ++summary.num_readings;
    summary.watts += words[1] >= 0 ? value(1) : 0;
    summary.joules += words[2] >= 0 ? value(2) : 0;
    if (words[3] >= 0 && (summary.slowest_rank < 0 || value(3) < summary.slowest_mhz)) {
      summary.slowest_mhz = value(3);
      summary.slowest_rank = number;
    }
    if (words[4] >= 0 && (summary.hottest_rank < 0 || value(4) > summary.hottest_celsius)) {
      summary.hottest_celsius = value(4);
      summary.hottest_rank = number;
    }
    const auto reasons = static_cast<std::uint64_t>(words[5]);
    if (!describe_throttle(reasons).empty() && summary.throttled_rank < 0) {
      summary.throttled_rank = number;
    }
    summary.throttle_reasons |= reasons;
  }
  return summary;
}

}  // namespace memphis
