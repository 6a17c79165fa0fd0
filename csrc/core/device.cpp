// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/device.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <thread>

#include <sys/mman.h>
#include <unistd.h>

#include "csrc/core/device_wait.h"
#include "csrc/core/error.h"
#include "csrc/core/memory_pools.h"
#include "csrc/core/pause.h"
#include "csrc/core/round.h"

namespace memphis {
namespace {

std::atomic<std::uint64_t> g_num_allocations{0};
std::atomic<std::uint64_t> g_allocated_bytes{0};
std::atomic<std::uint64_t> g_pinned_bytes{0};
std::atomic<std::uint64_t> g_num_enqueued{0};
std::atomic<std::uint64_t> g_num_stalls{0};
std::atomic<std::uint64_t> g_num_host_waits{0};
std::atomic<bool> g_has_waited{false};
thread_local bool t_captures = false;

constexpr std::size_t kAlignment = 256;  // of cudaMalloc; the CPU keeps the same layout
constexpr const char* kModuleLoading = "CUDA_MODULE_LOADING";

double host_seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// A large allocation asks for huge pages: training walks through hundreds of megabytes in strides,
// more 4 KiB pages than a processor holds translations for.
void* allocate_host(std::size_t bytes) {
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const bool huge = bytes >= kHugePage;
  const std::size_t alignment = huge ? kHugePage : kAlignment;
  void* data = std::aligned_alloc(alignment, round_up(bytes, alignment));
  if (data == nullptr) {
    throw PreflightError("cannot allocate " + std::to_string(bytes) +
                         " bytes of host memory (the system refused); use a smaller model or "
                         "batch.micro_batch");
  }
  if (huge) {
    madvise(data, bytes, MADV_HUGEPAGE);  // advice: where it is not taken, nothing is lost
  }
  return data;
}

std::atomic<GpuWatch*> g_watch{nullptr};

// A step waits for the GPU in every layer that exchanges rows: mostly for less than so many yields.
constexpr int kNumYields = 5000;
constexpr std::chrono::microseconds kLongestSleep{50};

// Freeing waits for all work of the GPU, some of which may wait for ranks that will not come.
void give_up_if_unwinding() noexcept {
  GpuWatch* const watch = gpu_watch();
  if (watch != nullptr && std::uncaught_exceptions() > 0) {
    watch->give_up();
  }
}

}  // namespace

std::string_view name_of(Device device) {
  return device == Device::cpu ? "cpu" : "cuda";
}

bool device_available(Device device) {
  return device == Device::cpu || cuda_device::unavailable_reason().empty();
}

std::string device_unavailable_reason() {
  return cuda_device::unavailable_reason();
}

DeviceInfo device_info(Device device) {
  if (device == Device::cuda) {
    return cuda_device::info();
  }
  DeviceInfo info;
  info.name = "cpu";
  info.num_multiprocessors = static_cast<int>(std::thread::hardware_concurrency());
  info.total_bytes = static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) *
                     static_cast<std::size_t>(sysconf(_SC_PAGE_SIZE));
  info.free_bytes = std::numeric_limits<std::size_t>::max();
  for (const MemoryPool& pool : memory_pools(Device::cpu)) {
    info.free_bytes = std::min(info.free_bytes, pool.free_bytes);
  }
  return info;
}

int num_gpus() {
  return cuda_device::count();
}

void select_gpu(int index) {
  cuda_device::select(index);
}

void load_kernels_at_once() {
  const char* const asked = std::getenv(kModuleLoading);
  if (asked == nullptr || *asked == '\0') {
    setenv(kModuleLoading, "EAGER", 1);
  }
}

void require_kernels_at_once() {
  if (cuda_device::loads_kernels_at_once()) {
    return;
  }
  const char* const asked = std::getenv(kModuleLoading);
  const std::string is = asked == nullptr ? "" : asked;
  const std::string fix = std::string("set ") + kModuleLoading +
                          "=EAGER in the environment of all ranks (mpirun -x " + kModuleLoading +
                          "=EAGER)";
  if (is == "EAGER") {
    throw PreflightError(
        "CUDA was started before memphis asked for all kernels at once (MPI_Init "
        "does so where MPI looks for GPUs, and ranks of a pipeline start receives "
        "early, while which a GPU loads no kernel); " +
        fix);
  }
  throw PreflightError(std::string(kModuleLoading) + " is " + is +
                       " (ranks of a pipeline start receives early, and a GPU that waits for one "
                       "loads no kernel); " +
                       fix);
}

std::array<std::int64_t, 2> gpu_identity() {
  return cuda_device::identity();
}

void set_gpu_watch(GpuWatch* watch) noexcept {
  g_watch.store(watch, std::memory_order_release);
}

GpuWatch* gpu_watch() noexcept {
  return g_watch.load(std::memory_order_acquire);
}

std::uint64_t enqueued_count() {
  return g_num_enqueued.load(std::memory_order_relaxed);
}

std::uint64_t stall_count() {
  return g_num_stalls.load(std::memory_order_relaxed);
}

void count_enqueued() noexcept {
  if (t_captures) {
    return;
  }
  g_num_enqueued.fetch_add(1, std::memory_order_relaxed);
  if (g_has_waited.exchange(false, std::memory_order_relaxed)) {
    g_num_stalls.fetch_add(1, std::memory_order_relaxed);
  }
}

void note_host_wait() noexcept {
  g_num_host_waits.fetch_add(1, std::memory_order_relaxed);
  g_has_waited.store(true, std::memory_order_relaxed);
}

std::uint64_t host_wait_count() {
  return g_num_host_waits.load(std::memory_order_relaxed);
}

void* device_allocate(std::size_t bytes, Device device) {
  g_num_allocations.fetch_add(1, std::memory_order_relaxed);
  g_allocated_bytes.fetch_add(bytes, std::memory_order_relaxed);
  if (bytes == 0) {
    bytes = kAlignment;  // a distinct address for every allocation
  }
  return device == Device::cpu ? allocate_host(bytes) : cuda_device::allocate(bytes);
}

void device_free(void* data, Device device) noexcept {
  if (device == Device::cpu) {
    std::free(data);
  } else {
    give_up_if_unwinding();
    note_host_wait();  // freeing waits for all work
    cuda_device::free(data);
  }
}

std::uint64_t allocation_count() {
  return g_num_allocations.load(std::memory_order_relaxed);
}

std::uint64_t allocated_bytes() {
  return g_allocated_bytes.load(std::memory_order_relaxed);
}

std::uint64_t pinned_bytes() {
  return g_pinned_bytes.load(std::memory_order_relaxed);
}

void device_copy(void* destination, const void* source, std::size_t bytes, Stream stream) {
  if (bytes == 0) {
    return;
  }
  if (stream.device == Device::cpu) {
    std::memcpy(destination, source, bytes);
  } else {
    count_enqueued();
    cuda_device::copy(destination, source, bytes, stream.handle);
  }
}

void device_zero(void* destination, std::size_t bytes, Stream stream) {
  if (bytes == 0) {
    return;
  }
  if (stream.device == Device::cpu) {
    std::memset(destination, 0, bytes);
  } else {
    count_enqueued();
    cuda_device::zero(destination, bytes, stream.handle);
  }
}

void synchronize(Stream stream) {
  if (stream.device == Device::cpu) {
    return;
  }
  note_host_wait();
  if (GpuWatch* const watch = gpu_watch()) {
    poll([&] { return cuda_device::is_done(stream.handle); },
         *watch,
         Pause(kNumYields, kLongestSleep));
  } else {
    cuda_device::synchronize(stream.handle);
  }
}

Event::Event(Device device, Use use) : device_(device), use_(use) {
  if (device_ == Device::cuda) {
    handle_ = cuda_device::create_event(use == Use::timing);
  }
}

Event::~Event() {
  if (handle_ != nullptr) {
    cuda_device::destroy_event(handle_);
  }
}

void Event::record(Stream stream) {
  require(stream.device == device_, "an event belongs to the device of its stream");
  if (device_ == Device::cuda) {
    cuda_device::record_event(handle_, stream.handle, use_ == Use::timing);
  } else {
    host_seconds_ = host_seconds();
  }
}

void Event::make_wait(Stream stream) const {
  require(stream.device == device_, "an event belongs to the device of its stream");
  if (device_ == Device::cuda) {
    cuda_device::make_wait(stream.handle, handle_);
  }
}

void Event::wait() const {
  if (device_ == Device::cpu) {
    return;
  }
  note_host_wait();
  if (GpuWatch* const watch = gpu_watch()) {
    poll([&] { return cuda_device::event_is_done(handle_); },
         *watch,
         Pause(kNumYields, kLongestSleep));
  } else {
    cuda_device::synchronize_event(handle_);
  }
}

bool Event::is_done() const {
  return device_ == Device::cpu || cuda_device::event_is_done(handle_);
}

double Event::seconds_since(const Event& earlier) const {
  if (device_ == Device::cuda) {
    if (!is_done()) {
      wait();
    }
    return cuda_device::seconds_between(earlier.handle_, handle_);
  }
  return host_seconds_ - earlier.host_seconds_;
}

OwnedStream::OwnedStream(Device device, StreamPriority priority)
    : held_elsewhere_(std::make_unique<std::int64_t>(0)),
      stream_{.device = device,
              .handle = device == Device::cuda ? cuda_device::create_stream(priority) : nullptr,
              .held_elsewhere = held_elsewhere_.get()} {}

OwnedStream::~OwnedStream() {
  if (stream_.handle != nullptr) {
    cuda_device::destroy_stream(stream_.handle);
  }
}

Graph::~Graph() {
  if (handle_ != nullptr) {
    cuda_device::destroy_graph(handle_);
  }
}

void Graph::launch(Stream stream) const {
  require(stream.device == Device::cuda, "a graph is launched on a stream of its device");
  count_enqueued();
  cuda_device::launch_graph(handle_, stream.handle);
}

Capture::Capture(Stream stream) : stream_(stream) {
  require(stream.device == Device::cuda,
          "a stream of the CPU is captured (its work is done when the call returns, so that there "
          "is nothing to launch again); capture a stream of Device::cuda");
  require(!t_captures, "a second stream is captured in a thread; end the first capture");
  cuda_device::begin_capture(stream.handle);
  t_captures = true;
}

Capture::~Capture() {
  if (!ended_) {
    t_captures = false;
    cuda_device::abandon_capture(stream_.handle);
  }
}

std::optional<Graph> Capture::end() {
  require(!ended_, "a capture ends once");
  ended_ = true;
  t_captures = false;
  const cuda_device::EndedCapture ended = cuda_device::end_capture(stream_.handle);
  if (ended.graph == nullptr) {
    return std::nullopt;
  }
  return Graph(ended.graph, ended.num_nodes);
}

PinnedBuffer::PinnedBuffer(std::size_t bytes, Device peer)
    : data_(peer == Device::cuda ? cuda_device::allocate_pinned(bytes) : allocate_host(bytes)),
      bytes_(bytes),
      peer_(peer) {
  g_pinned_bytes.fetch_add(bytes, std::memory_order_relaxed);
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ == nullptr) {
    return;
  }
  if (peer_ == Device::cuda) {
    give_up_if_unwinding();
    cuda_device::free_pinned(data_);
  } else {
    std::free(data_);
  }
}

}  // namespace memphis
