// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/cuda/gpu_launch.h"

#include <map>
#include <mutex>
#include <utility>

namespace memphis::kernels {
namespace {

struct SharedOfKernel {
  std::size_t static_bytes = 0;
  std::size_t allowed = 0;  // dynamic, by asking
};

// On the current GPU, as it was left by whoever loaded the kernel.
SharedOfKernel shared_of(const void* kernel) {
  cudaFuncAttributes attributes{};
  MEMPHIS_CUDA(cudaFuncGetAttributes(&attributes, kernel));
  const auto allowed = static_cast<std::size_t>(attributes.maxDynamicSharedSizeBytes);
  // What it has without asking is for static and dynamic memory together.
  return {.static_bytes = attributes.sharedSizeBytes,
          .allowed = allowed > kSharedWithoutOptIn ? allowed : 0};
}

}  // namespace

void allow_shared(const void* kernel, std::size_t dynamic_bytes) {
  // By kernel and GPU, as each has a copy of its own. Never destroyed: threads may launch while
  // static objects go. The lock is also held while the runtime is asked, so that of two threads the
  // one that needs less does not lower what the other was given.
  static std::mutex& mutex = *new std::mutex;
  static auto& kernels = *new std::map<std::pair<const void*, int>, SharedOfKernel>;
  int gpu = 0;
  MEMPHIS_CUDA(cudaGetDevice(&gpu));
  const std::lock_guard lock(mutex);
  auto found = kernels.find({kernel, gpu});
  if (found == kernels.end()) {
    found = kernels.emplace(std::pair(kernel, gpu), shared_of(kernel)).first;
  }
  SharedOfKernel& shared = found->second;
  const std::size_t opt_in = shared_opt_in(shared.static_bytes, dynamic_bytes);
  // Of the function, not of the launch: never lowered, as a graph may hold a launch with more.
  if (opt_in > shared.allowed) {
    MEMPHIS_CUDA(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(opt_in)));
    shared.allowed = opt_in;
  }
}

}  // namespace memphis::kernels
