// SPDX-License-Identifier: Apache-2.0
//
// Device::cuda as host memory (simt_memory.h); streams and events that know what other threads have
// not done yet, which is all that can be pending; graphs that hold what was put on a stream while it
// was captured.
#include "csrc/core/device_simt.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "csrc/core/device.h"
#include "csrc/core/device_wait.h"
#include "csrc/core/error.h"
#include "csrc/core/pause.h"
#include "csrc/core/simt_memory.h"

namespace memphis {
namespace simt_stream {
namespace {

std::atomic<std::int64_t>& num_streams_of(StreamPriority priority) {
  static std::array<std::atomic<std::int64_t>, 2> numbers{};
  return numbers.at(static_cast<std::size_t>(priority));
}

}  // namespace
}  // namespace simt_stream
namespace simt_device {
namespace {

int compute_capability = 90;
int num_multiprocessors = 0;
std::optional<double> clock_seconds;
bool started_early = false;
bool memory_waits = true;

}  // namespace

void set_compute_capability(int capability) {
  compute_capability = capability;
}

void set_num_multiprocessors(int number) {
  num_multiprocessors = number;
}

void set_clock(std::optional<double> seconds) {
  clock_seconds = seconds;
}

void set_memory_waits(bool waits) {
  memory_waits = waits;
}

void set_started_early(bool early) {
  started_early = early;
}

std::int64_t num_streams(StreamPriority priority) {
  return simt_stream::num_streams_of(priority);
}

}  // namespace simt_device
namespace simt_stream {

// Where a piece of work lies on its stream.
struct Point {
  enum class State { pending, failed, done };
  State state = State::pending;
  double seconds = 0;               // when it was done
  std::shared_ptr<Point> previous;  // what lies before it; null if that is done
};

namespace {

// Ranks are many more than cores.
constexpr int kNumYields = 50;
constexpr std::chrono::microseconds kLongestSleep{500};

double now_seconds() {
  if (simt_device::clock_seconds) {
    return *simt_device::clock_seconds;
  }
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// Of all points. Never destroyed: work may end while static objects go.
struct Shared {
  std::mutex mutex;
  std::condition_variable changed;  // a point is no longer pending
};

Shared& shared() {
  static Shared& instance = *new Shared;
  return instance;
}

// From here on, all under the mutex.

// Passes over what is done, up to the latest that is not. Returns when the last of that was done.
double pass_done(std::shared_ptr<Point>& point) {
  double seconds = 0;
  while (point != nullptr && point->state == Point::State::done) {
    seconds = std::max(seconds, point->seconds);
    point = std::shared_ptr<Point>(point->previous);  // first, as this may be its last owner
  }
  return seconds;
}

// Whether some of it may still be done.
bool any_pending(const Point* point) {
  while (point != nullptr && point->state != Point::State::pending) {
    point = point->previous.get();
  }
  return point != nullptr;
}

}  // namespace

// What is put on a stream that is captured, and the graph that comes of it.
struct Recording {
  std::vector<std::function<void()>> work;
  std::optional<simt_memory::Kept> memory;  // of the graph, on the device
  // Under the mutex, as others may ask for an event of it.
  bool open = true;       // the capture has not ended
  std::string broken_by;  // a call that CUDA does not allow meanwhile: the recording is lost
};

// The last of its work; `null` is a stream as well.
struct SimulatedStream {
  StreamPriority priority = StreamPriority::ordinary;
  std::shared_ptr<Point> last;
  std::shared_ptr<Recording> recording;  // null: it is not captured
};

namespace {

SimulatedStream& default_stream() {
  static SimulatedStream& stream = *new SimulatedStream;
  return stream;
}

SimulatedStream& stream_of(void* handle) {
  return handle == nullptr ? default_stream() : *static_cast<SimulatedStream*>(handle);
}

// All that there are. Under the mutex.
std::vector<SimulatedStream*>& all_streams() {
  static std::vector<SimulatedStream*>& streams =
      *new std::vector<SimulatedStream*>{&default_stream()};
  return streams;
}

// That of the capture of this thread: in CUDA's thread-local mode others are free to do anything but
// to touch the stream. Null: this thread captures nothing.
thread_local std::shared_ptr<Recording> t_recording;

void break_off(Recording& recording, const std::string& call) {
  const std::lock_guard lock(shared().mutex);
  recording.broken_by = call;
}

// Empty where it is whole.
std::string call_that_broke(const Recording& recording) {
  const std::lock_guard lock(shared().mutex);
  return recording.broken_by;
}

// What CUDA answers to a call that a graph cannot hold, which ends the capture too.
[[noreturn]] void refuse(Recording& recording, const std::string& call, const char* why) {
  break_off(recording, call);
  throw Error(ExitCode::internal,
              "cudaErrorStreamCaptureUnsupported: " + call + " while a stream is captured (" + why +
                  "); do it before the capture or after it");
}

void refuse_in_capture(const char* call, const char* why) {
  if (t_recording != nullptr) {
    refuse(*t_recording, call, why);
  }
}

std::shared_ptr<Recording> recording_of(void* stream) {
  const std::lock_guard lock(shared().mutex);
  return stream_of(stream).recording;
}

void refuse_if_captured(void* stream, const char* call, const char* why) {
  if (const std::shared_ptr<Recording> recording = recording_of(stream)) {
    refuse(*recording, call, why);
  }
}

}  // namespace

bool is_captured(void* stream) {
  return recording_of(stream) != nullptr;
}

void record(void* stream, std::function<void()> work) {
  const std::shared_ptr<Recording> recording = recording_of(stream);
  if (const std::string call = call_that_broke(*recording); !call.empty()) {
    throw Error(ExitCode::internal,
                "cudaErrorStreamCaptureInvalidated: " + call +
                    " has ended the capture of this stream (what follows would be missing in the "
                    "graph); leave that call out of what is captured");
  }
  recording->work.push_back(std::move(work));
}

PendingWork::PendingWork(void* stream) : point_(std::make_shared<Point>()) {
  refuse_if_captured(
      stream, "work of another thread", "the simulated device records kernels alone");
  const std::lock_guard lock(shared().mutex);
  std::shared_ptr<Point>& last = stream_of(stream).last;
  pass_done(last);
  point_->previous = std::exchange(last, point_);
}

PendingWork::~PendingWork() {
  if (point_ == nullptr) {
    return;  // moved from
  }
  {
    const std::lock_guard lock(shared().mutex);
    point_->state = Point::State::done;
    point_->seconds = now_seconds();
    pass_done(point_->previous);
  }
  shared().changed.notify_all();
}

bool PendingWork::may_begin() const {
  const std::lock_guard lock(shared().mutex);
  pass_done(point_->previous);
  return !any_pending(point_->previous.get());
}

void PendingWork::fail() noexcept {
  {
    const std::lock_guard lock(shared().mutex);
    point_->state = Point::State::failed;
  }
  shared().changed.notify_all();
}

}  // namespace simt_stream

namespace cuda_device {
namespace {

// cudaMemcpyDefault's rule: the addresses tell which side is the device's.
std::unique_ptr<simt_memory::HostAccess> access(const void* address, std::size_t bytes) {
  if (!simt_memory::contains(reinterpret_cast<std::uintptr_t>(address))) {
    return nullptr;
  }
  return std::make_unique<simt_memory::HostAccess>(address, bytes);
}

using simt_stream::Point;
using simt_stream::shared;

struct SimulatedEvent {
  std::shared_ptr<Point> point;  // the last of the work that was not done; null if all is
  double seconds = 0;            // when the rest was done
  // Where it was recorded while its stream was captured, until it is recorded elsewhere or, if it
  // is part of the graph, a launch passes it.
  std::shared_ptr<simt_stream::Recording> recording;
  bool in_graph = false;  // it is part of the graph, where it is in a recording
};

SimulatedEvent& event_of(void* handle) {
  return *static_cast<SimulatedEvent*>(handle);
}

// Host memory that is page-locked, by its address.
class PinnedRanges {
 public:
  static PinnedRanges& instance() {
    static PinnedRanges& ranges = *new PinnedRanges;
    return ranges;
  }
  void add(const void* data, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    ranges_[reinterpret_cast<std::uintptr_t>(data)] = bytes;
  }
  void remove(const void* data) {
    const std::lock_guard lock(mutex_);
    ranges_.erase(reinterpret_cast<std::uintptr_t>(data));
  }
  bool contains(const void* data, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    const auto next = ranges_.upper_bound(begin);
    if (next == ranges_.begin()) {
      return false;
    }
    const auto& [first, size] = *std::prev(next);
    return begin + bytes <= first + size;
  }

 private:
  std::mutex mutex_;
  std::map<std::uintptr_t, std::size_t> ranges_;
};

// Whether a copy with this end does not wait for the host.
bool is_asynchronous(const void* address, std::size_t bytes) {
  return simt_memory::contains(reinterpret_cast<std::uintptr_t>(address)) ||
         PinnedRanges::instance().contains(address, bytes);
}

void set_passed(void* event, void* stream) {
  const std::lock_guard lock(shared().mutex);
  std::shared_ptr<Point>& last = simt_stream::stream_of(stream).last;
  simt_stream::pass_done(last);
  event_of(event) = {.point = last, .seconds = simt_stream::now_seconds(), .recording = nullptr};
}

// Null where the event is in no capture that goes on.
std::shared_ptr<simt_stream::Recording> open_recording_of(void* event) {
  const std::lock_guard lock(shared().mutex);
  const std::shared_ptr<simt_stream::Recording>& recording = event_of(event).recording;
  return recording != nullptr && recording->open ? recording : nullptr;
}

// An event that only orders what is captured is no part of the graph, so that nothing will ever
// pass it: not even the end of the capture makes it one that others can ask or wait for.
void refuse_if_it_orders_a_graph(void* event, const char* call) {
  const std::lock_guard lock(shared().mutex);
  if (event_of(event).recording != nullptr && !event_of(event).in_graph) {
    throw Error(
        ExitCode::internal,
        std::string("cudaErrorCapturedEvent: ") + call +
            " of an event that was last recorded in a capture (no launch passes it); record "
            "it again, or use an event for timing");
  }
}

// The CPU asks about an event. To CUDA that is unsafe in any thread that captures, whatever the
// event.
void refuse_if_recorded(void* event, const char* call) {
  if (const auto recording = open_recording_of(event)) {
    simt_stream::refuse(*recording, call, "the event is in what is captured, and not passed yet");
  }
  simt_stream::refuse_in_capture(call, "a thread that captures may not ask for what others do");
  refuse_if_it_orders_a_graph(event, call);
}

// Without a watch, until nothing is pending any more.
void wait_for_end_of(const Point* point) {
  std::unique_lock lock(shared().mutex);
  shared().changed.wait(lock, [&] { return !simt_stream::any_pending(point); });
}

// What the device itself does where a GPU's stream would wait, which a capture does not forbid.

std::shared_ptr<Point> end_of_stream(void* stream) {
  const std::lock_guard lock(shared().mutex);
  return simt_stream::stream_of(stream).last;
}
std::shared_ptr<Point> end_of_event(void* event) {
  const std::lock_guard lock(shared().mutex);
  return event_of(event).point;
}
bool stream_has_passed(void* stream) {
  const std::lock_guard lock(shared().mutex);
  std::shared_ptr<Point>& last = simt_stream::stream_of(stream).last;
  simt_stream::pass_done(last);
  return last == nullptr;
}
bool all_have_passed() {
  const std::lock_guard lock(shared().mutex);
  return std::ranges::all_of(simt_stream::all_streams(), [](simt_stream::SimulatedStream* stream) {
    simt_stream::pass_done(stream->last);
    return stream->last == nullptr;
  });
}
bool has_passed(void* event) {
  const std::lock_guard lock(shared().mutex);
  SimulatedEvent& own = event_of(event);
  own.seconds = std::max(own.seconds, simt_stream::pass_done(own.point));
  return own.point == nullptr;
}

// Before the host does what a GPU would do behind that: `synchronize` of the stream or the event.
template <class Done, class Wait>
void wait_on_host(const Done& done, const Wait& wait_unwatched) {
  if (GpuWatch* const watch = gpu_watch()) {
    poll(done, *watch, Pause(simt_stream::kNumYields, simt_stream::kLongestSleep));
  } else {
    wait_unwatched();
  }
}

void wait_for_stream(void* stream) {
  wait_on_host([&] { return stream_has_passed(stream); },
               [&] { wait_for_end_of(end_of_stream(stream).get()); });
}

// Without a watch, until nothing is pending on any stream any more.
void wait_for_end_of_all() {
  std::unique_lock lock(shared().mutex);
  shared().changed.wait(lock, [] {
    return std::ranges::none_of(simt_stream::all_streams(), [](const auto* stream) {
      return simt_stream::any_pending(stream->last.get());
    });
  });
}

// Memory is given and taken while nothing is on the device: cudaFree and cudaFreeHost wait for that, and
// cudaMalloc and cudaHostAlloc may (CUDA programming guide, "Implicit Synchronization").
void wait_for_memory() {
  if (simt_device::memory_waits) {
    wait_for_end_of_all();
  }
}

void wait_for_all_streams() {
  wait_on_host(all_have_passed, wait_for_end_of_all);
}

}  // namespace

std::string unavailable_reason() {
  return "";
}

DeviceInfo info() {
  DeviceInfo result = device_info(Device::cpu);
  // The limits of an H100, which kernels are held to; the rest is this machine's.
  result.name = "simt";
  result.simulated = true;
  result.compute_capability = simt_device::compute_capability;
  if (simt_device::num_multiprocessors > 0) {
    result.num_multiprocessors = simt_device::num_multiprocessors;
  }
  result.shared_bytes_per_block = std::size_t{227} << 10;
  if (const std::size_t total = simt_memory::capacity(); total > 0) {
    result.has_own_memory = true;
    result.total_bytes = total;
    result.free_bytes = total - std::min(total, simt_memory::used_bytes());
  }
  return result;
}

int count() {
  return 1;
}
void select(int index) {
  require(index == 0, "there is one simulated device");
}
// Each process has one.
std::array<std::int64_t, 2> identity() {
  return {getpid(), 0};
}

bool loads_kernels_at_once() {
  const char* const asked = std::getenv("CUDA_MODULE_LOADING");
  return !simt_device::started_early && asked != nullptr && std::string_view(asked) == "EAGER";
}

void* allocate(std::size_t bytes) {
  simt_stream::refuse_in_capture("cudaMalloc", "a graph works on memory that is there");
  wait_for_memory();
  return simt_memory::allocate(bytes);
}

// What a capture forbids is left undone there, as CUDA leaves it, and the capture is lost.
void free(void* data) noexcept {
  if (simt_stream::t_recording != nullptr) {
    simt_stream::break_off(*simt_stream::t_recording, "cudaFree");
    return;
  }
  wait_for_memory();
  simt_memory::release(data);
}

void copy(void* destination, const void* source, std::size_t bytes, void* stream) {
  if (!is_asynchronous(source, bytes) || !is_asynchronous(destination, bytes)) {
    simt_stream::refuse_if_captured(
        stream, "a copy of pageable memory", "the driver reads it while the call lasts");
    note_host_wait();
  }
  simt_stream::enqueue(stream, [=] {
    const auto from = access(source, bytes);
    const auto to = access(destination, bytes);
    std::memmove(destination, source, bytes);
  });
}

void zero(void* destination, std::size_t bytes, void* stream) {
  simt_stream::enqueue(stream, [=] {
    const simt_memory::HostAccess to(destination, bytes);
    std::memset(destination, 0, bytes);
  });
}

void synchronize(void* stream) {
  simt_stream::refuse_if_captured(
      stream, "cudaStreamSynchronize", "nothing is done that could be waited for");
  simt_stream::refuse_in_capture("cudaStreamSynchronize",
                                 "a thread that captures may not wait for what others do");
  wait_for_end_of(end_of_stream(stream).get());
}
bool is_done(void* stream) {
  simt_stream::refuse_if_captured(
      stream, "cudaStreamQuery", "nothing is done that could be asked for");
  simt_stream::refuse_in_capture("cudaStreamQuery",
                                 "a thread that captures may not ask for what others do");
  return stream_has_passed(stream);
}

void* create_stream(StreamPriority priority) {
  ++simt_stream::num_streams_of(priority);
  auto* const stream =
      new simt_stream::SimulatedStream{.priority = priority, .last = {}, .recording = {}};
  const std::lock_guard lock(shared().mutex);
  simt_stream::all_streams().push_back(stream);
  return stream;
}
void destroy_stream(void* stream) noexcept {
  const std::lock_guard lock(shared().mutex);
  const auto* const simulated = static_cast<simt_stream::SimulatedStream*>(stream);
  --simt_stream::num_streams_of(simulated->priority);
  std::erase(simt_stream::all_streams(), simulated);
  delete simulated;
}

void* create_event(bool /*timing*/) {
  return new SimulatedEvent;
}
void destroy_event(void* event) noexcept {
  const std::lock_guard lock(shared().mutex);
  delete static_cast<SimulatedEvent*>(event);
}
void record_event(void* event, void* stream, bool timing) {
  if (const auto recording = simt_stream::recording_of(stream)) {
    // One that orders is no part of the graph: what is captured is done in its order.
    if (timing) {
      simt_stream::record(stream, [event, stream] { set_passed(event, stream); });
    }
    const std::lock_guard lock(shared().mutex);
    event_of(event).recording = recording;
    event_of(event).in_graph = timing;
    return;
  }
  set_passed(event, stream);
}
// The stream has nothing to wait for once the host has.
void make_wait(void* stream, void* event) {
  const std::shared_ptr<simt_stream::Recording> recording = simt_stream::recording_of(stream);
  const std::shared_ptr<simt_stream::Recording> recorded = open_recording_of(event);
  if (recording != nullptr && recording == recorded) {
    return;  // one stream, which is in order
  }
  if (recording != nullptr || recorded != nullptr) {
    simt_stream::refuse(recording != nullptr ? *recording : *recorded,
                        "cudaStreamWaitEvent between two streams",
                        "the simulated device records one stream");
  }
  refuse_if_it_orders_a_graph(event, "cudaStreamWaitEvent");
  wait_on_host([&] { return has_passed(event); },
               [&] { wait_for_end_of(end_of_event(event).get()); });
}
void synchronize_event(void* event) {
  refuse_if_recorded(event, "cudaEventSynchronize");
  wait_for_end_of(end_of_event(event).get());
}
bool event_is_done(void* event) {
  refuse_if_recorded(event, "cudaEventQuery");
  return has_passed(event);
}
// Asked whether they are done, events take over the time at which the last of their work was.
double seconds_between(void* earlier, void* later) {
  for (void* event : {earlier, later}) {
    (void)event_is_done(event);
  }
  const std::lock_guard lock(shared().mutex);
  // What cudaEventElapsedTime gives, which is more coarse the longer it is.
  constexpr double kMilliseconds = 1e3;
  const auto milliseconds =
      static_cast<float>((event_of(later).seconds - event_of(earlier).seconds) * kMilliseconds);
  return static_cast<double>(milliseconds) / kMilliseconds;
}

void* allocate_pinned(std::size_t bytes) {
  simt_stream::refuse_in_capture("cudaHostAlloc", "a graph works on memory that is there");
  wait_for_memory();
  void* const data = std::malloc(bytes == 0 ? 1 : bytes);
  PinnedRanges::instance().add(data, bytes);
  return data;
}
void free_pinned(void* data) noexcept {
  if (simt_stream::t_recording != nullptr) {
    simt_stream::break_off(*simt_stream::t_recording, "cudaFreeHost");
    return;
  }
  wait_for_memory();
  PinnedRanges::instance().remove(data);
  std::free(data);
}

void begin_capture(void* stream) {
  require(stream != nullptr,
          "cudaErrorStreamCaptureUnsupported: the default stream is captured (all others wait for "
          "it); capture a stream of your own");
  require(!simt_stream::is_captured(stream),
          "cudaErrorIllegalState: a stream is captured twice at a time; end the first capture");
  simt_stream::t_recording = std::make_shared<simt_stream::Recording>();
  const std::lock_guard lock(shared().mutex);
  simt_stream::stream_of(stream).recording = simt_stream::t_recording;
}

EndedCapture end_capture(void* stream) {
  constexpr std::size_t kBytesOfNode = 1024;  // a kernel's arguments and more
  std::shared_ptr<simt_stream::Recording> recording;
  {
    const std::lock_guard lock(shared().mutex);
    recording = std::exchange(simt_stream::stream_of(stream).recording, nullptr);
    recording->open = false;
  }
  simt_stream::t_recording = nullptr;
  if (const std::string call = simt_stream::call_that_broke(*recording); !call.empty()) {
    throw Error(ExitCode::internal,
                "cudaErrorStreamCaptureInvalidated: " + call +
                    " has ended the capture of this stream (a graph cannot hold it); leave it out");
  }
  const std::size_t num_nodes = recording->work.size();
  try {
    recording->memory.emplace(num_nodes * kBytesOfNode);
  } catch (const PreflightError&) {
    return {};
  }
  return {.graph = new std::shared_ptr<simt_stream::Recording>(std::move(recording)),
          .num_nodes = static_cast<std::int64_t>(num_nodes)};
}

void abandon_capture(void* stream) noexcept {
  const std::lock_guard lock(shared().mutex);
  if (simt_stream::t_recording != nullptr) {
    simt_stream::t_recording->open = false;
  }
  simt_stream::t_recording = nullptr;
  simt_stream::stream_of(stream).recording = nullptr;
}

void launch_graph(void* graph, void* stream) {
  simt_stream::enqueue(stream,
                       [recording = *static_cast<std::shared_ptr<simt_stream::Recording>*>(graph)] {
                         for (const std::function<void()>& work : recording->work) {
                           work();
                         }
                       });
}

void destroy_graph(void* graph) noexcept {
  delete static_cast<std::shared_ptr<simt_stream::Recording>*>(graph);
}

}  // namespace cuda_device

void simt_stream::wait_for_pending(void* stream) {
  cuda_device::wait_for_stream(stream);
}

void simt_stream::wait_for_all_pending() {
  cuda_device::wait_for_all_streams();
}

}  // namespace memphis
