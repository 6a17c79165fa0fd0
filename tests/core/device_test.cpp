// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/device.h"

#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

namespace memphis {
namespace {

class Devices : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (!device_available(GetParam())) {
      GTEST_SKIP() << device_unavailable_reason();
    }
  }
};

INSTANTIATE_TEST_SUITE_P(,
                         Devices,
                         testing::Values(Device::cpu, Device::cuda),
                         [](const auto& device) { return std::string(name_of(device.param)); });

struct Watch final : GpuWatch {
  void check() override {}
  void leave() noexcept override {}
  void give_up() noexcept override { ++num_given_up; }
  int num_given_up = 0;
};

struct Installed {
  explicit Installed(GpuWatch& watch) { set_gpu_watch(&watch); }
  ~Installed() { set_gpu_watch(nullptr); }
};

struct Memory {
  explicit Memory(Device where) : device(where), data(device_allocate(1024, where)) {}
  ~Memory() { device_free(data, device); }
  Device device;
  void* data;
};

TEST_P(Devices, AStreamWaitsForAnEventOfAnother) {
  const OwnedStream first(GetParam());
  const OwnedStream second(GetParam());
  const Memory a(GetParam());
  const Memory b(GetParam());
  PinnedBuffer host(1024, GetParam());
  auto* bytes = static_cast<unsigned char*>(host.data());
  for (int repeat = 0; repeat < 20; ++repeat) {
    bytes[0] = static_cast<unsigned char>(repeat + 1);
    Event event(GetParam(), Event::Use::ordering);
    device_copy(a.data, host.data(), 1024, first.view());
    event.record(first.view());
    event.make_wait(second.view());
    device_copy(b.data, a.data, 1024, second.view());
    synchronize(second.view());
    event.wait();
    bytes[0] = 0;
    device_copy(host.data(), b.data, 1024, second.view());
    synchronize(second.view());
    ASSERT_EQ(bytes[0], repeat + 1);
  }
}

TEST_P(Devices, AnExceptionGivesUpWhatWaitsForOthersBeforeItFreesMemoryOfTheGpu) {
  Watch watch;
  const Installed installed(watch);
  { const Memory memory(GetParam()); }
  EXPECT_EQ(watch.num_given_up, 0);
  try {
    const Memory memory(GetParam());
    throw std::runtime_error("this rank fails");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(watch.num_given_up, GetParam() == Device::cuda ? 1 : 0);
}

TEST_P(Devices, WaitsUnderAWatchEnd) {
  Watch watch;
  const Installed installed(watch);
  const OwnedStream stream(GetParam());
  const Memory memory(GetParam());
  Event begin(GetParam());
  Event end(GetParam());
  begin.record(stream.view());
  device_zero(memory.data, 1024, stream.view());
  end.record(stream.view());
  end.wait();
  synchronize(stream.view());
  EXPECT_GE(end.seconds_since(begin), 0);
}

}  // namespace
}  // namespace memphis
