// SPDX-License-Identifier: Apache-2.0
#include "csrc/core/memory_pools.h"

#include <fstream>
#include <functional>

#include "csrc/core/control_groups.h"

namespace memphis {
namespace {

// MemAvailable is what can be had without swapping; free pages alone would leave out the cache.
std::size_t available_machine_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  std::size_t kibibytes = 0;
  std::string unit;
  while (meminfo >> key >> kibibytes >> unit) {
    if (key == "MemAvailable:") {
      return kibibytes * 1024;
    }
  }
  return 0;
}

}  // namespace

std::vector<MemoryPool> memory_pools(Device device) {
  if (device == Device::cuda) {
    const DeviceInfo info = device_info(device);
    if (info.has_own_memory) {
      return {{gpu_identity(), info.free_bytes, "the GPU"}};
    }
  }
  std::vector<MemoryPool> pools = {
      {{machine_identity(), 0}, available_machine_bytes(), "this machine"}};
  if (const auto limit = read_control_group_limits().memory) {
    pools.push_back({{machine_identity(), static_cast<std::int64_t>(limit->group)},
                     limit->free_bytes,
                     limit->file});
  }
  return pools;
}

std::int64_t machine_identity() {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  return static_cast<std::int64_t>(std::hash<std::string>{}(id));
}

}  // namespace memphis
