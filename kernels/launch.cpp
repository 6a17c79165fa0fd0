// SPDX-License-Identifier: Apache-2.0
#include "kernels/launch.h"

#include <algorithm>
#include <string>

#include "csrc/core/error.h"

namespace memphis::kernels {

const DeviceInfo& this_device() {
  static const DeviceInfo info = device_info(Device::cuda);
  return info;
}

std::int64_t free_multiprocessors(Stream stream) {
  const std::int64_t all = this_device().num_multiprocessors;
  const std::int64_t held = stream.held_elsewhere == nullptr ? 0 : *stream.held_elsewhere;
  return std::max(all - held, ceil_div(all, 2));
}

bool check_launch(const Launch& launch) {
  constexpr std::int64_t kMaxGridX = 2147483647;
  constexpr std::int64_t kMaxGridYZ = 65535;
  constexpr std::int64_t kMaxThreads = 1024;
  constexpr std::int64_t kMaxBlockZ = 64;
  constexpr std::int64_t kMaxCluster = 8;  // of every device that has clusters
  const Dim3& grid = launch.grid;
  const Dim3& block = launch.block;
  const auto text = [](const Dim3& d) {
    return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
  };
  require(grid.x >= 0 && grid.y >= 0 && grid.z >= 0 && grid.x <= kMaxGridX &&
              grid.y <= kMaxGridYZ && grid.z <= kMaxGridYZ,
          "grid of " + text(grid) +
              " blocks exceeds the device's limits (2147483647 x 65535 x "
              "65535); split the operands");
  require(block.x > 0 && block.y > 0 && block.z > 0 && block.z <= kMaxBlockZ &&
              block.x * block.y * block.z <= kMaxThreads,
          "block of " + text(block) +
              " threads exceeds the device's limits (1 to 1024, z to 64); use smaller blocks");
  require(launch.cluster == 1 || this_device().compute_capability >= 90,
          "clusters of " + std::to_string(launch.cluster) +
              " blocks on a device that has none (they begin with sm_90); launch blocks alone");
  require(launch.cluster >= 1 && launch.cluster <= kMaxCluster && grid.x % launch.cluster == 0,
          "clusters of " + std::to_string(launch.cluster) + " blocks in a grid of " + text(grid) +
              " (1 to 8 are possible, and a whole number of clusters); round the "
              "grid up");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
    return false;
  }
  count_enqueued();
  return true;
}

}  // namespace memphis::kernels
