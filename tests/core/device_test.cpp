// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/device.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "csrc/core/error.h"
#include "tests/support/environment_variable.h"
#include "tests/support/error_text.h"
#include "tests/support/on_devices.h"

namespace memphis {
namespace {

class Devices : public test::OnDevices {};

INSTANTIATE_TEST_SUITE_P(,
                         Devices,
                         testing::Values(Device::cpu, Device::cuda),
                         test::name_of_device);

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

// What a capture records runs when its graph is launched, on what lies there then, and not before.
TEST(Graphs, DoWhatWasRecordedOnWhatLiesThere) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const OwnedStream stream(Device::cuda);
  const Memory memory(Device::cuda);
  const PinnedBuffer in(1024, Device::cuda);
  const PinnedBuffer out(1024, Device::cuda);
  auto* from = static_cast<unsigned char*>(in.data());
  const auto* to = static_cast<const unsigned char*>(out.data());
  from[0] = 1;
  std::memset(out.data(), 9, 1024);
  const Graph graph = [&] {
    Capture capture(stream.view());
    device_zero(memory.data, 1024, stream.view());
    device_copy(memory.data, in.data(), 8, stream.view());
    device_copy(out.data(), memory.data, 1024, stream.view());
    return capture.end().value();
  }();
  EXPECT_EQ(graph.num_nodes(), 3);
  synchronize(stream.view());
  EXPECT_EQ(to[0], 9) << "the recording has been done";
  for (int launch = 2; launch < 4; ++launch) {
    from[0] = static_cast<unsigned char>(launch);
    graph.launch(stream.view());
    synchronize(stream.view());
    EXPECT_EQ(to[0], launch);
    EXPECT_EQ(to[100], 0);
  }
}

// Three pieces of work, or a graph of them: the host has enqueued three, or one.
TEST(Graphs, CountAsOnePieceOfWork) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const OwnedStream stream(Device::cuda);
  const Memory memory(Device::cuda);
  const auto work = [&] {
    for (int i = 0; i < 3; ++i) {
      device_zero(memory.data, 1024, stream.view());
    }
  };
  std::uint64_t before = enqueued_count();
  work();
  EXPECT_EQ(enqueued_count() - before, 3U);
  before = enqueued_count();
  const Graph graph = [&] {
    Capture capture(stream.view());
    work();
    return capture.end().value();
  }();
  EXPECT_EQ(enqueued_count() - before, 0U);
  graph.launch(stream.view());
  EXPECT_EQ(enqueued_count() - before, 1U);
  synchronize(stream.view());
}

// Not where nothing follows, and once however often the host asks.
TEST(Graphs, AStallIsAWaitThatWorkFollows) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const OwnedStream stream(Device::cuda);
  const Memory memory(Device::cuda);
  const auto work = [&] { device_zero(memory.data, 1024, stream.view()); };
  Event event(Device::cuda);
  work();
  const std::uint64_t before = stall_count();
  work();
  event.record(stream.view());
  EXPECT_EQ(stall_count() - before, 0U);
  synchronize(stream.view());
  event.wait();
  EXPECT_EQ(stall_count() - before, 0U);
  work();
  work();
  EXPECT_EQ(stall_count() - before, 1U);
  event.wait();
  work();
  EXPECT_EQ(stall_count() - before, 2U);
  synchronize(stream.view());
}

// An event for timing is passed by each launch.
TEST(Graphs, PassTheirEvents) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const OwnedStream stream(Device::cuda);
  const Memory memory(Device::cuda);
  Event begin(Device::cuda);
  Event within(Device::cuda);
  Event end(Device::cuda);
  const Graph graph = [&] {
    Capture capture(stream.view());
    device_zero(memory.data, 1024, stream.view());
    within.record(stream.view());
    return capture.end().value();
  }();
  for (int launch = 0; launch < 2; ++launch) {
    begin.record(stream.view());
    graph.launch(stream.view());
    end.record(stream.view());
    EXPECT_GE(within.seconds_since(begin), 0.0) << "launch " << launch;
    EXPECT_GE(end.seconds_since(within), 0.0) << "launch " << launch;
  }
}

struct Forbidden {
  const char* name;
  // Of what the message says.
  const char* call;
  void (*make)(Stream, void* memory, Event& within);
};

class ForbiddenInGraphs : public testing::TestWithParam<Forbidden> {};

TEST_P(ForbiddenInGraphs, IsRefusedAndLosesTheRecording) {
  if (!device_available(Device::cuda) || !device_info(Device::cuda).simulated) {
    GTEST_SKIP() << "what is refused is CUDA's own there";
  }
  const OwnedStream stream(Device::cuda);
  const Memory memory(Device::cuda);
  Event within(Device::cuda);
  const auto refused = [&](const auto& make) {
    try {
      make();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  {
    Capture capture(stream.view());
    device_zero(memory.data, 1024, stream.view());
    within.record(stream.view());
    const std::string text = refused([&] { GetParam().make(stream.view(), memory.data, within); });
    EXPECT_NE(text.find("cudaErrorStreamCaptureUnsupported: " + std::string(GetParam().call)),
              std::string::npos)
        << text;
    const std::string lost = std::string("cudaErrorStreamCaptureInvalidated: ") + GetParam().call;
    const std::string later = refused([&] { device_zero(memory.data, 1024, stream.view()); });
    EXPECT_NE(later.find(lost), std::string::npos) << later;
    const std::string end = refused([&] { capture.end(); });
    EXPECT_NE(end.find(lost), std::string::npos) << end;
  }
  // The stream is as it was.
  device_zero(memory.data, 1024, stream.view());
  synchronize(stream.view());
}

INSTANTIATE_TEST_SUITE_P(
    ,
    ForbiddenInGraphs,
    testing::Values(
        Forbidden{"synchronize",
                  "cudaStreamSynchronize",
                  [](Stream stream, void*, Event&) { synchronize(stream); }},
        Forbidden{"event_wait",
                  "cudaEventSynchronize",
                  [](Stream, void*, Event& within) { within.wait(); }},
        Forbidden{"event_query",
                  "cudaEventQuery",
                  [](Stream, void*, Event& within) { (void)within.is_done(); }},
        Forbidden{"event_elapsed",
                  "cudaEventQuery",  // whether there is something to wait for
                  [](Stream, void*, Event& within) { (void)within.seconds_since(within); }},
        // Nor is what has nothing to do with the capture to be asked or waited for in its thread.
        Forbidden{"other_event_query",
                  "cudaEventQuery",
                  [](Stream, void*, Event&) {
                    const OwnedStream other(Device::cuda);
                    Event passed(Device::cuda, Event::Use::ordering);
                    passed.record(other.view());
                    (void)passed.is_done();
                  }},
        Forbidden{"other_event_wait",
                  "cudaEventSynchronize",
                  [](Stream, void*, Event&) {
                    const OwnedStream other(Device::cuda);
                    Event passed(Device::cuda, Event::Use::ordering);
                    passed.record(other.view());
                    passed.wait();
                  }},
        Forbidden{"other_stream_wait",
                  "cudaStreamSynchronize",
                  [](Stream, void*, Event&) {
                    const OwnedStream other(Device::cuda);
                    synchronize(other.view());
                  }},
        Forbidden{"allocation",
                  "cudaMalloc",
                  [](Stream, void*, Event&) {
                    device_free(device_allocate(8, Device::cuda), Device::cuda);
                  }},
        Forbidden{"pinned_allocation",
                  "cudaHostAlloc",
                  [](Stream, void*, Event&) { const PinnedBuffer buffer(8, Device::cuda); }},
        Forbidden{"pageable_copy",
                  "a copy of pageable memory",
                  [](Stream stream, void* memory, Event&) {
                    const int value = 0;
                    device_copy(memory, &value, sizeof(value), stream);
                  }},
        Forbidden{"other_stream",
                  "cudaStreamWaitEvent between two streams",
                  [](Stream, void*, Event& within) {
                    const OwnedStream other(Device::cuda);
                    within.make_wait(other.view());
                  }}),
    [](const auto& tested) { return std::string(tested.param.name); });

// Work of other streams may be ordered and enqueued meanwhile, and other threads may ask and wait.
TEST(Graphs, LeaveOtherStreamsAndThreadsAlone) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const OwnedStream stream(Device::cuda);
  const OwnedStream first(Device::cuda);
  const OwnedStream second(Device::cuda);
  const Memory memory(Device::cuda);
  Event event(Device::cuda, Event::Use::ordering);
  const Graph graph = [&] {
    Capture capture(stream.view());
    device_zero(memory.data, 8, first.view());
    event.record(first.view());
    event.make_wait(second.view());
    device_zero(memory.data, 8, second.view());
    std::thread other([&] {
      event.wait();
      synchronize(second.view());
    });
    other.join();
    device_zero(memory.data, 1024, stream.view());
    return capture.end().value();
  }();
  EXPECT_EQ(graph.num_nodes(), 1);
}

// It is an edge of the graph and no part of it. Recorded again, it is an event like another.
TEST(Graphs, EventsThatOrderWhatIsCapturedArePassedByNoLaunch) {
  if (!device_available(Device::cuda)) {
    GTEST_SKIP() << device_unavailable_reason();
  }
  const OwnedStream stream(Device::cuda);
  const OwnedStream other(Device::cuda);
  const Memory memory(Device::cuda);
  Event event(Device::cuda, Event::Use::ordering);
  const Graph graph = [&] {
    Capture capture(stream.view());
    device_zero(memory.data, 1024, stream.view());
    event.record(stream.view());
    event.make_wait(stream.view());
    return capture.end().value();
  }();
  graph.launch(stream.view());
  synchronize(stream.view());
  EXPECT_THROW((void)event.is_done(), Error);
  EXPECT_THROW(event.wait(), Error);
  EXPECT_THROW(event.make_wait(other.view()), Error);
  event.record(stream.view());
  event.make_wait(other.view());
  event.wait();
  EXPECT_TRUE(event.is_done());
}

// To free memory throws nothing, so the end of the capture says it.
TEST(Graphs, AreNotMadeWhereMemoryWasFreedMeanwhile) {
  if (!device_available(Device::cuda) || !device_info(Device::cuda).simulated) {
    GTEST_SKIP() << "what is refused is CUDA's own there";
  }
  const OwnedStream stream(Device::cuda);
  void* const data = device_allocate(8, Device::cuda);
  Capture capture(stream.view());
  device_free(data, Device::cuda);
  EXPECT_THROW(capture.end(), Error);
}

TEST(Graphs, AreRefusedOnTheCpu) {
  EXPECT_THROW(Capture{Stream{}}, ContractError);
}

// What load_kernels_at_once() makes of a value of the environment.
std::string loading_for(const char* value) {
  constexpr const char* kName = "CUDA_MODULE_LOADING";
  const test::EnvironmentVariable variable(kName, value);
  load_kernels_at_once();
  return std::getenv(kName);
}

TEST(KernelsAtOnce, AreAskedForWhereTheEnvironmentDoesNotSay) {
  EXPECT_EQ(loading_for(nullptr), "EAGER");
  EXPECT_EQ(loading_for(""), "EAGER");
  EXPECT_EQ(loading_for("LAZY"), "LAZY");
}

}  // namespace
}  // namespace memphis
