// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/executor.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <limits>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include <omp.h>

#include "csrc/core/error.h"
#include "kernels/device/simt/block.h"
#include "kernels/device/simt/cluster.h"
#include "kernels/device/simt/grid_waits.h"
#include "kernels/device/simt/symbols.h"
#include "kernels/launch.h"

namespace memphis::kernels::simt {
namespace {

void check_launch(const KernelCall& call, const Symbols::Kernel& kernel) {
  constexpr std::size_t kMaxStaticBytes = std::size_t{48} << 10;
  require(kernel.static_shared_bytes <= kMaxStaticBytes,
          "kernel " + kernel.name + " has " + std::to_string(kernel.static_shared_bytes) +
              " bytes of static shared memory (a block has at most 48 KiB); use dynamic_shared");
  // nvcc lays dynamic shared memory behind the static one at the alignment that TMA's kernels ask
  // for, and counts the gap as static.
  constexpr std::size_t kDynamicAlignment = 1024;
  const std::size_t static_bytes = call.dynamic_shared_bytes == 0
                                       ? kernel.static_shared_bytes
                                       : (kernel.static_shared_bytes + kDynamicAlignment - 1) /
                                             kDynamicAlignment * kDynamicAlignment;
  const std::size_t bytes = static_bytes + call.dynamic_shared_bytes;
  require(bytes <= SharedMemory::kMaxBytes,
          "kernel " + kernel.name + " asks for " + std::to_string(bytes) +
              " bytes of shared memory (a block has at most 227 KiB); use smaller tiles");
  require(call.cluster == 1 || kernel.static_shared_bytes == 0,
          "kernel " + kernel.name +
              " is launched in clusters and has static shared memory (blocks "
              "of a cluster run on one thread of the machine here); use dynamic_shared");
  // What the GPU's launch asks for, and what CUDA would then refuse.
  const std::size_t opt_in = shared_opt_in(static_bytes, call.dynamic_shared_bytes);
  require(bytes <= kMaxStaticBytes || call.dynamic_shared_bytes <= opt_in,
          "kernel " + kernel.name + " has " + std::to_string(static_bytes) + " and " +
              std::to_string(call.dynamic_shared_bytes) +
              " bytes of static and dynamic shared memory and has asked for " +
              std::to_string(opt_in) +
              " (a block has at most 48 KiB of both without asking); ask for the dynamic part");
}

std::vector<std::int64_t> order_of_clusters(std::int64_t count) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  if (options().seed != 0) {
    std::uint64_t state = options().seed;
    for (std::size_t i = order.size(); i > 1; --i) {
      state = state * 6364136223846793005U + 1442695040888963407U;
      std::swap(order[i - 1], order[(state >> 33U) % i]);
    }
  }
  return order;
}

}  // namespace

Options& options() {
  static Options options;
  return options;
}

Index3 thread_index() {
  return Block::running()->thread().index;
}
Index3 block_index() {
  return Block::running()->index();
}
Index3 block_dim() {
  return Block::running()->call().block;
}
Index3 grid_dim() {
  return Block::running()->call().grid;
}

thread_local Now now;

bool at(std::int64_t block, int thread) {
  return now.block == block && now.thread == thread;
}

void check(const KernelCall& call) {
  check_launch(call, Symbols::instance().kernel(call.kernel));
}

void run(const KernelCall& launched) {
  const Symbols::Kernel kernel = Symbols::instance().kernel(launched.kernel);
  KernelCall call = launched;
  const Index3& grid = call.grid;
  const std::int64_t num_clusters = std::int64_t{grid.x} * grid.y * grid.z / call.cluster;
  const std::vector<std::int64_t> order = order_of_clusters(num_clusters);
  const int wanted = options().num_blocks == 0 ? omp_get_max_threads() : options().num_blocks;
  const int in_flight = static_cast<int>(std::min<std::int64_t>(wanted, num_clusters));
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  GridWaits grid_waits;
  call.grid_waits = &grid_waits;
  // The cluster that is reported: a fault rather than what waited for it, then the first.
  std::pair<bool, std::size_t> reported = {true, std::numeric_limits<std::size_t>::max()};
  std::string message;
  std::exception_ptr failure;  // of the machine, as one that has no memory for stacks
#pragma omp parallel num_threads(in_flight)
  {
#pragma omp single  // there may be fewer than were asked for
    grid_waits.begin(omp_get_num_threads());
    try {
      for (std::size_t i = next++; i < order.size(); i = next++) {
        Cluster& cluster = Cluster::of_this_thread();
        if (!cluster.run(call, order[i] * call.cluster)) {
          next = order.size();  // nobody begins another
          const std::lock_guard lock(mutex);
          const std::pair found = {cluster.faulty().waits_for_grid(), i};
          if (found < reported) {
            reported = found;
            message = cluster.faulty().fault_message(kernel.name);
          }
          grid_waits.abandon();
        }
      }
    } catch (...) {
      next = order.size();
      const std::lock_guard lock(mutex);
      failure = failure ? failure : std::current_exception();
      grid_waits.abandon();
    }
    grid_waits.leave();
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
  if (!message.empty()) {
    throw KernelFault(message);
  }
}

// Each of these is called from a kernel, so its return address is the place in the kernel.
void sync_block() {
  ExecutorCall()->sync_block(__builtin_return_address(0));
}
void sync_named(int id, int num_threads) {
  ExecutorCall()->sync_named(id, num_threads, true, __builtin_return_address(0));
}
void arrive_named(int id, int num_threads) {
  ExecutorCall()->sync_named(id, num_threads, false, __builtin_return_address(0));
}
void sync_warp(unsigned mask) {
  ExecutorCall()->collective("__syncwarp", mask, nullptr, nullptr, __builtin_return_address(0));
}
void collective(const char* instruction, unsigned mask, void* operand, Compute compute) {
  ExecutorCall()->collective(instruction, mask, operand, compute, __builtin_return_address(0));
}
void fault_here(const char* what, const char* advice) {
  ExecutorCall()->stop({.what = what, .advice = advice, .pc = __builtin_return_address(0)});
}
void wait_until(const char* what, bool (*ready)(void*), void* argument) {
  const ExecutorCall call;
  if (!ready(argument)) {
    call->wait_until(what, ready, argument, __builtin_return_address(0));
  }
}
void copy_async(void* shared, const void* global, std::size_t bytes, bool valid) {
  ExecutorCall()->copy_async(shared, valid ? global : nullptr, bytes, __builtin_return_address(0));
}
void copy_async_commit() {
  ExecutorCall()->commit_copies();
}
void copy_async_wait(int pending) {
  ExecutorCall()->wait_copies(static_cast<std::size_t>(pending));
}
void check_access(const void* address, std::size_t bytes, Access access) {
  ExecutorCall()->access(address, bytes, access, __builtin_return_address(0));
}
void* dynamic_shared() {
  return ExecutorCall()->shared().dynamic();
}

}  // namespace memphis::kernels::simt

// UndefinedBehaviorSanitizer calls this with each report, which names the line, before it ends the
// process: this adds the thread.
// NOLINTNEXTLINE(bugprone-reserved-identifier): the sanitizer's name for it
extern "C" void __ubsan_on_report() {
  using memphis::kernels::simt::Block;
  if (Block::in_kernel()) {
    const memphis::kernels::simt::ExecutorCall call;
    std::fprintf(stderr, "in %s:\n", call->where().c_str());
  }
}
