// SPDX-License-Identifier: Apache-2.0
#include "tests/support/ranks.h"

#include <cstdlib>
#include <utility>

#include "csrc/comm/nccl.h"
#include "csrc/core/device.h"
#include "csrc/core/error.h"

namespace memphis::test {
namespace {

std::unique_ptr<World>& the_world() {
  static std::unique_ptr<World> world;
  return world;
}

}  // namespace

World& process_world() {
  require(the_world() != nullptr, "a test of processes has the main of ranks_main.cpp");
  return *the_world();
}

std::string why_no_gpu_ranks(int num_ranks) {
  if (!has_nccl()) {
    return "this binary has no NCCL; build the simt preset, or the cuda preset where NCCL 2.27 or "
           "newer is installed";
  }
  if (!device_available(Device::cuda)) {
    return device_unavailable_reason();
  }
  // Of the simulated device each process has one.
  if (num_ranks > num_gpus() && std::getenv("NCCL_HOSTID") == nullptr &&
      !device_info(Device::cuda).simulated) {
    return "more ranks than GPUs; tests/gpu_ranks.sh lets them share one";
  }
  return "";
}

void set_process_world(std::unique_ptr<World> world) {
  the_world() = std::move(world);
}

}  // namespace memphis::test
