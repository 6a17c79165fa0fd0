// SPDX-License-Identifier: Apache-2.0
//
// Device::cuda as host memory: allocations of their own address range, streams and events that are
// always up to date, as every piece of work is done when its call returns.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include "csrc/core/device.h"
#include "csrc/core/error.h"
#include "csrc/core/round.h"
#include "csrc/core/simt_memory.h"

namespace memphis {
namespace simt_memory {
namespace {

constexpr std::size_t kGranule = 8;      // bytes that one count of Range::valid stands for
constexpr std::size_t kAlignment = 256;  // of cudaMalloc
// Between allocations: an index that is off by a row of 16 Ki floats still hits nothing.
constexpr std::size_t kGap = std::size_t{64} << 10;
// Address space, of which only what is used becomes memory.
constexpr std::size_t kRangeBytes = std::size_t{1} << 38;

void* reserve(std::size_t bytes) {
  void* const address = mmap(
      nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) {
    throw PreflightError("cannot reserve " + std::to_string(bytes) +
                         " bytes of address space (the simulated device lives there); raise "
                         "`ulimit -v` or set vm.overcommit_memory to 0");
  }
  return address;
}

class DeviceMemory {
 public:
  // Never destroyed: owners with static storage may free after it would be gone.
  static DeviceMemory& instance() {
    static DeviceMemory& memory = *new DeviceMemory;
    return memory;
  }

  const Range& range() const { return range_; }

  void* allocate(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const std::size_t extent = round_up(bytes, kAlignment) + kGap;
    if (extent > range_.bytes - used_) {
      throw PreflightError("the simulated device has no " + std::to_string(bytes) +
                           " bytes left (its " + std::to_string(range_.bytes) +
                           " bytes of addresses are handed out once); start a new process");
    }
    const std::uintptr_t address = range_.begin + used_;
    used_ += extent;
    allocations_[address] = {.bytes = bytes, .live = true};
    mark(address, bytes, true);
    auto* const data = reinterpret_cast<void*>(address);
    // NaN in every dtype, so that what a kernel reads before it is written is seen.
    std::memset(data, 0xFF, bytes);
    ASAN_POISON_MEMORY_REGION(data, bytes);
    return data;
  }

  void free(void* data) {
    const std::lock_guard lock(mutex_);
    const auto address = reinterpret_cast<std::uintptr_t>(data);
    const auto found = allocations_.find(address);
    require(found != allocations_.end() && found->second.live,
            "device_free of what device_allocate did not give or what is freed already");
    found->second.live = false;
    const std::size_t bytes = found->second.bytes;
    mark(address, bytes, false);
    madvise(data, round_up(bytes, kAlignment), MADV_DONTNEED);  // gives whole pages back
  }

  std::string describe(std::uintptr_t address) {
    const std::lock_guard lock(mutex_);
    auto next = allocations_.upper_bound(address);
    if (next == allocations_.begin()) {
      return "device memory that was never allocated";
    }
    const auto& [begin, allocation] = *std::prev(next);
    const std::string of = (allocation.live ? " an allocation of " : " a freed allocation of ") +
                           std::to_string(allocation.bytes) + " bytes";
    const std::size_t offset = address - begin;
    if (offset < allocation.bytes) {
      return "at byte " + std::to_string(offset) + " of" + of;
    }
    if (next != allocations_.end() && next->first - address < offset - allocation.bytes) {
      return std::to_string(next->first - address) + " bytes before an allocation of " +
             std::to_string(next->second.bytes) + " bytes";
    }
    return std::to_string(offset - allocation.bytes) + " bytes past the end of" + of;
  }

 private:
  DeviceMemory() : valid_(static_cast<std::uint8_t*>(reserve(kRangeBytes / kGranule))) {
    range_ = {.begin = reinterpret_cast<std::uintptr_t>(reserve(kRangeBytes)),
              .bytes = kRangeBytes,
              .valid = valid_};
  }

  void mark(std::uintptr_t address, std::size_t bytes, bool live) {
    std::uint8_t* const first = valid_ + (address - range_.begin) / kGranule;
    std::memset(first, live ? kGranule : 0, bytes / kGranule);
    if (bytes % kGranule != 0) {
      first[bytes / kGranule] = static_cast<std::uint8_t>(live ? bytes % kGranule : 0);
    }
  }

  struct Allocation {
    std::size_t bytes;
    bool live;
  };

  std::mutex mutex_;
  Range range_;
  std::uint8_t* valid_;
  std::size_t used_ = kGap;
  std::map<std::uintptr_t, Allocation> allocations_;  // by address; freed ones for the reports
};

}  // namespace

const Range& range = DeviceMemory::instance().range();

std::string describe(std::uintptr_t address) {
  return DeviceMemory::instance().describe(address);
}

HostAccess::HostAccess(const void* address, std::size_t bytes) : address_(address), bytes_(bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  require(bytes == 0 || (contains(begin) && is_live(begin, bytes)),
          "a copy or product of device memory leaves its allocation: " + std::to_string(bytes) +
              " bytes from " + (contains(begin) ? describe(begin) : "a host address"));
  ASAN_UNPOISON_MEMORY_REGION(address_, bytes_);
}

HostAccess::~HostAccess() {
  ASAN_POISON_MEMORY_REGION(address_, bytes_);
}

}  // namespace simt_memory

namespace cuda_device {
namespace {

// cudaMemcpyDefault's rule: the addresses tell which side is the device's.
std::unique_ptr<simt_memory::HostAccess> access(const void* address, std::size_t bytes) {
  if (!simt_memory::contains(reinterpret_cast<std::uintptr_t>(address))) {
    return nullptr;
  }
  return std::make_unique<simt_memory::HostAccess>(address, bytes);
}

struct EventTime {
  double seconds = 0;
};

}  // namespace

std::string unavailable_reason() {
  return "";
}

DeviceInfo info() {
  DeviceInfo result = device_info(Device::cpu);
  // The limits of an H100, which kernels are held to; the rest is this machine's.
  result.name = "simt";
  result.simulated = true;
  result.compute_capability = 90;
  result.shared_bytes_per_block = std::size_t{227} << 10;
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

void* allocate(std::size_t bytes) {
  return simt_memory::DeviceMemory::instance().allocate(bytes);
}

void free(void* data) noexcept {
  simt_memory::DeviceMemory::instance().free(data);
}

void copy(void* destination, const void* source, std::size_t bytes, void* /*stream*/) {
  const auto from = access(source, bytes);
  const auto to = access(destination, bytes);
  std::memmove(destination, source, bytes);
}

void zero(void* destination, std::size_t bytes, void* /*stream*/) {
  const simt_memory::HostAccess to(destination, bytes);
  std::memset(destination, 0, bytes);
}

void synchronize(void* /*stream*/) {}
bool is_done(void* /*stream*/) {
  return true;
}

// A stream is its address alone: distinct, so that mixing two up could be seen.
void* create_stream() {
  return new char;
}
void destroy_stream(void* stream) noexcept {
  delete static_cast<char*>(stream);
}

void* create_event(bool /*timing*/) {
  return new EventTime;
}
void destroy_event(void* event) noexcept {
  delete static_cast<EventTime*>(event);
}
void record_event(void* event, void* /*stream*/) {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  static_cast<EventTime*>(event)->seconds = std::chrono::duration<double>(now).count();
}
void make_wait(void* /*stream*/, void* /*event*/) {}
void synchronize_event(void* /*event*/) {}
bool event_is_done(void* /*event*/) {
  return true;
}
double seconds_between(void* earlier, void* later) {
  return static_cast<EventTime*>(later)->seconds - static_cast<EventTime*>(earlier)->seconds;
}

void* allocate_pinned(std::size_t bytes) {
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void free_pinned(void* data) noexcept {
  std::free(data);
}

}  // namespace cuda_device
}  // namespace memphis
