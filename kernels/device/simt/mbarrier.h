// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/device/simt/bulk_load.h"
#include "kernels/device/simt/clocks.h"
#include "kernels/device/simt/unit_host.h"

namespace memphis::kernels::simt {

// The mbarriers of a block, by the PTX ISA ("mbarrier"): a phase is complete when no arrival is
// pending and as many bytes have come as were expected; the next one begins at once. The 8 bytes in
// shared memory only mark the place.
//
// Functions are of the running thread, which is at `pc`, unless they say otherwise.
class Mbarriers {
 public:
  explicit Mbarriers(UnitHost& block) : block_(block) {}

  void begin_block() {
    barriers_.clear();
    heard_.clear();
  }
  // By the last thread to leave the kernel.
  void end_block();

  void init(const void* barrier, int arrivals, const void* pc);
  void invalidate(const void* barrier, const void* pc);
  // Expects `bytes` more in this phase, then arrives `count` times.
  void arrive(const void* barrier, int count, std::int64_t bytes, const void* pc);
  // Returns when the phase of this parity is complete; the copies that it needs are made no
  // earlier.
  void wait(const void* barrier, unsigned parity, const void* pc);
  // fence.mbarrier_init or fence.proxy.async: the async proxy sees what this thread has
  // initialised.
  void fence();

  // Stops the thread if no bulk copy may complete on the barrier.
  void require_copyable(const void* barrier, const void* pc);
  // A copy that completes on it. Requires that require_copyable() returned.
  void add_copy(const void* barrier, const BulkLoad& copy);

  // By a thread of another block of the cluster. What is wrong with it; null if nothing is.
  struct Sender {
    int rank;  // of its block
    int thread;
    Clocks& clocks;
  };
  const char* arrive_from_outside(const void* barrier, const Sender& sender);
  const char* refuse_copy_from_outside(const void* barrier) const;
  // Requires that nothing was wrong with it.
  void add_copy_from_outside(const void* barrier, const BulkLoad& copy);
  // What `thread` knows of the threads of the cluster's block `rank`: from waiting for phases that
  // these have arrived at. It tells no other thread of its block.
  Carried heard(int thread, int rank) const;

  // What the barriers that somebody waits for lack; empty if there are none. Of any side.
  std::string describe_awaited() const;

 private:
  using OfBlocks = std::map<int, Carried>;  // by rank

  struct Mbarrier {
    std::int64_t arrivals = 0;  // of a phase
    std::int64_t pending = 0;
    std::int64_t bytes = 0;  // expected and not there yet
    unsigned phase = 0;
    // What the arrivals of this phase, and those of the last complete one, hand to who waits.
    Carried arriving;
    Carried complete;
    OfBlocks arriving_from_outside;
    OfBlocks complete_from_outside;
    std::vector<BulkLoad> copies;
    int num_waiting = 0;

    Moment initialised;
    const void* initialised_pc = nullptr;
    bool in_async_proxy = false;
  };
  struct PhaseWait {
    Mbarriers* self;
    Mbarrier* barrier;
    unsigned parity;
  };

  Mbarrier& find(const void* barrier, const void* pc);
  const char* refuse_from_outside(const void* barrier) const;
  static bool is_complete(const Mbarrier& barrier, unsigned parity) {
    return (barrier.phase & 1U) != parity;
  }
  bool complete(Mbarrier& barrier, unsigned parity);
  static void finish_phase(Mbarrier& barrier);

  UnitHost& block_;
  std::map<std::uintptr_t, Mbarrier> barriers_;
  std::map<int, OfBlocks> heard_;  // by thread; of clusters alone
};

}  // namespace memphis::kernels::simt
