// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device/simt/bulk_copies.h"
#include "kernels/device/simt/executor.h"
#include "kernels/device/simt/fiber.h"
#include "kernels/device/simt/mbarrier.h"
#include "kernels/device/simt/shared_memory.h"
#include "kernels/device/simt/traffic.h"
#include "kernels/device/simt/unit_host.h"
#include "kernels/device/simt/warpgroups.h"

namespace memphis::kernels::simt {

constexpr int kMaxThreads = 1024;
constexpr int kNumNamedBarriers = 16;

enum class State : std::uint8_t { ready, waiting, exited };
enum class Wait : std::uint8_t { block, cluster, named, lanes, condition, grid };

// A thread of the block that runs, on its fiber.
struct Thread {
  Fiber fiber;
  std::uintptr_t stack_bottom = 0;
  Index3 index;
  int id = 0;
  State state = State::ready;

  // While it waits.
  Wait wait = Wait::block;
  const void* pc = nullptr;         // where
  const char* waits_for = nullptr;  // what, for a report
  bool (*condition)(void*) = nullptr;
  void* condition_argument = nullptr;

  struct Copy {
    std::byte* to;
    const std::byte* from;  // null: zeros
    std::size_t bytes;
    const void* pc;
  };
  std::deque<std::vector<Copy>> copy_groups;  // committed, oldest first
  std::vector<Copy> open_group;
};

// Lanes of a warp that wait for each other at one instruction.
struct Gathering {
  unsigned mask = 0;  // 0: free
  unsigned arrived = 0;
  const char* instruction = nullptr;
  Compute compute = nullptr;  // null: orders memory, as __syncwarp does
  std::array<void*, kWarpSize> operands{};
};

struct Warp {
  unsigned present = 0;  // lanes that have not left the kernel
  unsigned ready = 0;    // lanes in State::ready
  std::vector<Gathering> gatherings;
};

struct NamedBarrier {
  int expected = 0;  // threads; 0: nobody is there
  int arrived = 0;
  std::vector<int> waiting;
  Carried carried;
};

class Cluster;

// One block of those that a thread of the machine runs: one after the other, and with others in turns
// where they are a cluster.
class Block final : public UnitHost {
 public:
  // The block that this thread of the machine runs; null on the host's side.
  static Block* running() { return running_; }
  // Whether what runs on this thread of the machine now is a kernel, and not the executor.
  static bool in_kernel() { return in_kernel_; }
  static bool set_in_kernel(bool in_kernel) {  // returns what was
    return std::exchange(in_kernel_, in_kernel);
  }

  // Of a cluster, from the host's side. Its threads are ready then.
  void begin(
      const KernelCall& call, Index3 index, std::int64_t linear_index, Cluster& cluster, int rank);
  // Until each thread waits or has left; false if none could go on.
  bool advance();
  // Where none can: lets those go on whose condition holds by now. False if there are none.
  bool wake();
  void end();
  // All have left, or one has done what it must not.
  bool is_over() const { return num_exited_ == num_threads_; }
  bool is_at_fault() const { return fault_.what != nullptr || !deadlock_.empty(); }
  // Everybody waits, or has left: says who waits where and who will never come.
  void find_deadlock();
  // "kernel f, block (0, 0, 0), thread (0, 0, 0)" of the thread that runs.
  std::string where() const;
  // With all that it says; on the host's side.
  std::string fault_message(const std::string& kernel) const;
  // Whether it stands still because a thread waits for another block. On the host's side.
  bool waits_for_grid() const;

  Thread& thread() { return *current_; }
  const Index3& index() const { return index_; }
  const KernelCall& call() const { return *call_; }
  SharedMemory& shared() override { return shared_; }
  int thread_id() const override { return current_->id; }
  const void* kernel_pc() const override { return static_cast<const char*>(call_->kernel) + 1; }
  Mbarriers& mbarriers() { return mbarriers_; }
  BulkCopies& bulk_copies() { return bulk_copies_; }
  Warpgroups& warpgroups() { return warpgroups_; }
  unsigned lanes_present() const override {
    return warps_[static_cast<std::size_t>(current_->id / kWarpSize)].present;
  }

  // Of the running thread, which is at `pc`.
  void sync_block(const void* pc);
  void sync_named(int id, int num_threads, bool wait, const void* pc);
  void sync_cluster(const void* pc);
  void collective(const char* instruction,
                  unsigned mask,
                  void* operand,
                  Compute compute,
                  const void* pc) override;
  void wait_until(const char* what, bool (*ready)(void*), void* argument, const void* pc) override;
  // The same for what another block does.
  void wait_for_grid(const char* what, bool (*ready)(void*), void* argument, const void* pc);
  void copy_async(void* shared, const void* global, std::size_t bytes, const void* pc);
  void commit_copies();
  void wait_copies(std::size_t pending);
  void access(const void* address, std::size_t bytes, Access access, const void* pc) override;
  [[noreturn]] void stop(const Fault& fault) override;

  // Of no thread of its own: what other blocks of its cluster do to it. What is wrong with that, or
  // null; of the copy that knows so much of this block's threads, `fault` has the rest.
  Cluster& cluster() { return *cluster_; }
  int rank() const { return rank_; }
  const char* arrive_from_outside(const void* barrier, const Mbarriers::Sender& sender);
  const char* deliver_from_outside(const void* barrier,
                                   const BulkLoad& copy,
                                   const Carried& known,
                                   Fault& fault);
  int num_at_cluster_barrier() const { return num_at_cluster_barrier_; }
  int num_exited() const { return num_exited_; }
  int num_threads() const { return num_threads_; }
  void release_cluster_barrier();

 private:
  static void enter(void* block);
  void start(const KernelCall& call);
  bool run_warp(int warp);
  Thread* next_lane();
  void set_state(Thread& thread, State state);
  void hand_on();
  bool poll_conditions();
  static bool is_complete(const Warp& warp, const Gathering& gathering);
  void complete(Warp& warp, const Gathering& gathering);
  void release_barrier();
  bool barrier_is_one_place();
  void suspend(Wait wait, const char* what, const void* pc);
  void release(int thread);
  void leave();
  void finish_copies(const std::vector<Thread::Copy>& copies);
  void check(const void* address, std::size_t bytes, Access access, const void* pc);
  void access_global(std::uintptr_t address, std::size_t bytes, Access access, const void* pc);
  std::uint64_t random();
  std::string text_of_thread(int thread) const;

  // Asked at each access of a kernel: constinit spares a look whether they are initialised.
  static inline constinit thread_local Block* running_ = nullptr;
  static inline constinit thread_local bool in_kernel_ = false;

  int num_warps() const { return (num_threads_ + kWarpSize - 1) / kWarpSize; }

  const KernelCall* call_ = nullptr;
  Cluster* cluster_ = nullptr;
  int rank_ = 0;  // in it
  int num_at_cluster_barrier_ = 0;
  Index3 index_;
  std::int64_t linear_index_ = 0;
  int num_threads_ = 0;
  int num_exited_ = 0;
  std::vector<FiberStack> stacks_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<int> order_;  // in which they run
  std::array<NamedBarrier, kNumNamedBarriers> named_;
  int num_at_barrier_ = 0;
  const void* barrier_pc_ = nullptr;
  bool barrier_pcs_differ_ = false;
  Thread* current_ = nullptr;
  // A pass over the lanes of a warp: rotated, and every other time from the last to the first.
  struct Pass {
    int warp = 0;
    int count = 0;  // lanes
    std::uint64_t shuffle = 0;
    int position = 0;  // lanes before it have had their turn
  };
  Pass pass_;
  Fiber::Outside outside_;
  SharedMemory shared_;
  Mbarriers mbarriers_{*this};
  BulkCopies bulk_copies_{*this, mbarriers_};
  Warpgroups warpgroups_{*this};
  TrafficCounter traffic_;
  bool counts_traffic_ = false;
  Fault fault_;
  std::string deadlock_;
  std::uint64_t random_ = 0;
};

// A call from a kernel into the executor: `ExecutorCall()->sync_block(pc)`. What the executor
// itself touches is not the kernel's doing: while one of these exists, accesses to memory are not
// reported. The header-only parts of the standard library are compiled once for both.
class ExecutorCall {
 public:
  ExecutorCall() : was_in_kernel_(Block::set_in_kernel(false)) {}
  ~ExecutorCall() { Block::set_in_kernel(was_in_kernel_); }
  ExecutorCall(const ExecutorCall&) = delete;
  ExecutorCall& operator=(const ExecutorCall&) = delete;

  Block* operator->() const { return Block::running(); }

 private:
  bool was_in_kernel_;
};

}  // namespace memphis::kernels::simt
