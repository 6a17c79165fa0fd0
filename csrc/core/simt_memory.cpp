// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/simt_memory.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include "csrc/core/error.h"
#include "csrc/core/round.h"

namespace memphis::simt_memory {
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
    take(bytes);
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
    num_taken_ -= bytes;
    mark(address, bytes, false);
    madvise(data, round_up(bytes, kAlignment), MADV_DONTNEED);  // gives whole pages back
  }

  void keep(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    take(bytes);
  }
  void give_back(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    num_taken_ -= bytes;
  }
  void set_capacity(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    capacity_ = bytes;
  }
  std::size_t capacity() {
    const std::lock_guard lock(mutex_);
    return capacity_;
  }
  std::size_t used_bytes() {
    const std::lock_guard lock(mutex_);
    return num_taken_;
  }

  std::string describe(std::uintptr_t address) {
    const std::lock_guard lock(mutex_);
    const auto next = allocations_.upper_bound(address);
    if (next == allocations_.begin()) {
      return next == allocations_.end() ? "device memory that was never allocated"
                                        : before(*next, address);
    }
    const auto& [begin, allocation] = *std::prev(next);
    const std::string of = (allocation.live ? " an allocation of " : " a freed allocation of ") +
                           std::to_string(allocation.bytes) + " bytes";
    const std::size_t offset = address - begin;
    if (offset < allocation.bytes) {
      return "at byte " + std::to_string(offset) + " of" + of;
    }
    if (next != allocations_.end() && next->first - address < offset - allocation.bytes) {
      return before(*next, address);
    }
    return std::to_string(offset - allocation.bytes) + " bytes past the end of" + of;
  }

 private:
  DeviceMemory() : valid_(static_cast<std::uint8_t*>(reserve(kRangeBytes / kGranule))) {
    range_ = {.begin = reinterpret_cast<std::uintptr_t>(reserve(kRangeBytes)),
              .bytes = kRangeBytes,
              .valid = valid_};
  }

  struct Allocation {
    std::size_t bytes;
    bool live;
  };

  static std::string before(const std::pair<const std::uintptr_t, Allocation>& entry,
                            std::uintptr_t address) {
    return std::to_string(entry.first - address) + " bytes before an allocation of " +
           std::to_string(entry.second.bytes) + " bytes";
  }

  // Under the mutex.
  void take(std::size_t bytes) {
    if (capacity_ > 0 && (num_taken_ > capacity_ || bytes > capacity_ - num_taken_)) {
      throw PreflightError("the simulated device has no " + std::to_string(bytes) +
                           " bytes left (of its " + std::to_string(capacity_) + " bytes " +
                           std::to_string(num_taken_) +
                           " are taken); use a smaller model or batch.micro_batch");
    }
    num_taken_ += bytes;
  }

  void mark(std::uintptr_t address, std::size_t bytes, bool live) {
    std::uint8_t* const first = valid_ + (address - range_.begin) / kGranule;
    std::memset(first, live ? kGranule : 0, bytes / kGranule);
    if (bytes % kGranule != 0) {
      first[bytes / kGranule] = static_cast<std::uint8_t>(live ? bytes % kGranule : 0);
    }
  }

  std::mutex mutex_;
  Range range_;
  std::uint8_t* valid_;
  std::size_t used_ = kGap;    // of the range, which only grows
  std::size_t num_taken_ = 0;  // bytes of what lives, and of what libraries keep
  std::size_t capacity_ = 0;   // 0: no limit
  std::map<std::uintptr_t, Allocation> allocations_;  // by address; freed ones for the reports
};

// Where the host has access. Threads have it at once, to memory that overlaps or shares a granule
// of AddressSanitizer's: who ends its own takes away only what is nobody else's.
class OpenRanges {
 public:
  static OpenRanges& instance() {
    static OpenRanges& ranges = *new OpenRanges;
    return ranges;
  }

  void open(std::uintptr_t begin, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    ranges_.push_back({begin, begin + bytes});
    ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void*>(begin), bytes);
  }

  void close(std::uintptr_t begin, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const std::uintptr_t end = begin + bytes;
    ranges_.erase(std::find_if(ranges_.begin(), ranges_.end(), [&](const Open& open) {
      return open.begin == begin && open.end == end;
    }));
    std::vector<Open> others;  // in whole granules
    for (const Open& open : ranges_) {
      if (open.begin < end + kGranule && begin < open.end + kGranule) {
        others.push_back({open.begin / kGranule * kGranule, round_up(open.end, kGranule)});
      }
    }
    std::sort(others.begin(), others.end(), [](const Open& a, const Open& b) {
      return a.begin < b.begin;
    });
    std::uintptr_t next = begin;
    for (const Open& open : others) {
      poison(next, std::min(open.begin, end));
      next = std::max(next, open.end);
    }
    poison(next, end);
  }

 private:
  struct Open {
    std::uintptr_t begin;
    std::uintptr_t end;
  };

  static void poison(std::uintptr_t begin, std::uintptr_t end) {
    if (begin < end) {
      ASAN_POISON_MEMORY_REGION(reinterpret_cast<void*>(begin), end - begin);
    }
  }

  std::mutex mutex_;
  std::vector<Open> ranges_;
};

}  // namespace

const Range& range = DeviceMemory::instance().range();

void* allocate(std::size_t bytes) {
  return DeviceMemory::instance().allocate(bytes);
}

void release(void* data) {
  DeviceMemory::instance().free(data);
}

void set_capacity(std::size_t bytes) {
  DeviceMemory::instance().set_capacity(bytes);
}
std::size_t capacity() {
  return DeviceMemory::instance().capacity();
}
std::size_t used_bytes() {
  return DeviceMemory::instance().used_bytes();
}

Kept::Kept(std::size_t bytes) : bytes_(bytes) {
  DeviceMemory::instance().keep(bytes);
}

Kept::~Kept() {
  DeviceMemory::instance().give_back(bytes_);
}

std::string describe(std::uintptr_t address) {
  return DeviceMemory::instance().describe(address);
}

HostAccess::HostAccess(const void* address, std::size_t bytes) : address_(address), bytes_(bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  require(bytes == 0 || (contains(begin) && is_live(begin, bytes)),
          "a copy or product of device memory leaves its allocation: " + std::to_string(bytes) +
              " bytes from " + (contains(begin) ? describe(begin) : "a host address"));
  OpenRanges::instance().open(begin, bytes);
}

HostAccess::~HostAccess() {
  OpenRanges::instance().close(reinterpret_cast<std::uintptr_t>(address_), bytes_);
}

}  // namespace memphis::simt_memory
