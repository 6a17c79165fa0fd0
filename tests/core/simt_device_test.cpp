// SPDX-License-Identifier: Apache-2.0
//
// What the simulated device has of CUDA's ways that a program can stand for ever in.
#include <atomic>
#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "csrc/core/device.h"
#include "csrc/core/device_simt.h"
#include "csrc/core/error.h"
#include "tests/support/environment_variable.h"
#include "tests/support/error_text.h"

namespace memphis {
namespace {

constexpr const char* kName = "CUDA_MODULE_LOADING";
constexpr const char* kFix = "mpirun -x CUDA_MODULE_LOADING=EAGER";

std::string refusal() {
  const std::string text = test::error_text<PreflightError>([] { require_kernels_at_once(); });
  EXPECT_TRUE(test::follows_grammar(text)) << text;
  EXPECT_NE(text.find(kFix), std::string::npos) << text;
  return text;
}

TEST(KernelsAtOnce, AreThereWhereTheyWereAskedFor) {
  const test::EnvironmentVariable unset(kName, nullptr);
  load_kernels_at_once();
  EXPECT_NO_THROW(require_kernels_at_once());
}

TEST(KernelsAtOnce, AreRefusedByTheEnvironment) {
  const test::EnvironmentVariable lazy(kName, "LAZY");
  load_kernels_at_once();
  EXPECT_NE(refusal().find("CUDA_MODULE_LOADING is LAZY"), std::string::npos);
}

TEST(KernelsAtOnce, AreNotThereWhereCudaBeganBefore) {
  const test::EnvironmentVariable unset(kName, nullptr);
  simt_device::set_started_early(true);
  load_kernels_at_once();
  EXPECT_NE(refusal().find("CUDA was started before"), std::string::npos);
  simt_device::set_started_early(false);
}

// Whether `call` returns before work of another stream is done that lies there when it is made.
bool returns_before_work_is_done(const std::function<void()>& call) {
  const OwnedStream stream(Device::cuda);
  std::optional<simt_stream::PendingWork> work(stream.view().handle);
  std::atomic<bool> is_called{false};
  std::atomic<bool> is_done{false};
  bool before = false;
  std::thread caller([&] {
    is_called = true;
    call();
    before = !is_done;
  });
  while (!is_called) {
    std::this_thread::yield();
  }
  // A call that does not wait is over by then; one that does is never late.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  is_done = true;
  work.reset();
  caller.join();
  return before;
}

TEST(SimulatedDevice, HandsOutMemoryWhileNothingIsOnIt) {
  void* data = nullptr;
  EXPECT_FALSE(returns_before_work_is_done([&] { data = device_allocate(8, Device::cuda); }));
  EXPECT_FALSE(returns_before_work_is_done([&] { device_free(data, Device::cuda); }));
  std::optional<PinnedBuffer> pinned;
  EXPECT_FALSE(returns_before_work_is_done([&] { pinned.emplace(8, Device::cuda); }));
  EXPECT_FALSE(returns_before_work_is_done([&] { pinned.reset(); }));
}

// It would stand here for ever.
TEST(SimulatedDevice, DoesOtherWorkMeanwhile) {
  const OwnedStream stream(Device::cuda);
  const OwnedStream other(Device::cuda);
  void* const data = device_allocate(8, Device::cuda);
  {
    const simt_stream::PendingWork work(stream.view().handle);
    device_zero(data, 8, other.view());
    synchronize(other.view());
  }
  device_free(data, Device::cuda);
}

}  // namespace
}  // namespace memphis
