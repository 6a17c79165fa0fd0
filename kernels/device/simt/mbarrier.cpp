// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/mbarrier.h"

#include <utility>

namespace memphis::kernels::simt {
namespace {

constexpr std::size_t kBytes = 8;
constexpr std::int64_t kMaxCount = (std::int64_t{1} << 20) - 1;  // of arrivals, and of bytes

}  // namespace

void Mbarriers::init(const void* barrier, int arrivals, const void* pc) {
  const std::uintptr_t address = address_of(barrier);
  SharedMemory& shared = block_.shared();
  if (address % kBytes != 0 || !shared.contains(address) || arrivals < 1 || arrivals > kMaxCount) {
    block_.stop({.what = "initialises an mbarrier that is not 8 aligned bytes of shared memory, or "
                         "for a number of arrivals out of 1 to 2^20 - 1",
                 .advice = "declare it __shared__ and 8-byte aligned",
                 .pc = pc});
  }
  if (barriers_.count(address) != 0) {
    block_.stop({.what = "initialises an mbarrier that is one already",
                 .advice = "invalidate it first",
                 .pc = pc});
  }
  block_.access(barrier, kBytes, Access::write, pc);
  shared.set_mbarrier(address, kBytes, true);
  Mbarrier& added = barriers_[address];
  added.arrivals = arrivals;
  added.pending = arrivals;
  added.initialised = shared.clocks().now(block_.thread_id());
  added.initialised_pc = pc;
}

void Mbarriers::invalidate(const void* barrier, const void* pc) {
  const Mbarrier& found = find(barrier, pc);
  if (!found.copies.empty()) {
    block_.stop({.what = "invalidates an mbarrier that a bulk copy is under way to",
                 .advice = "wait for its phase first",
                 .pc = pc});
  }
  block_.shared().set_mbarrier(address_of(barrier), kBytes, false);
  block_.access(barrier, kBytes, Access::write, pc);
  barriers_.erase(address_of(barrier));
}

Mbarriers::Mbarrier& Mbarriers::find(const void* barrier, const void* pc) {
  const auto found = barriers_.find(address_of(barrier));
  if (found == barriers_.end()) {
    block_.stop({.what = "uses an mbarrier that nobody has initialised",
                 .advice = "call mbarrier_init in one thread, then pass a barrier of the block",
                 .pc = pc});
  }
  Mbarrier& result = found->second;
  if (options().check_races &&
      !block_.shared().clocks().before(result.initialised, block_.thread_id())) {
    block_.stop({.what = "uses an mbarrier with nothing that orders it after its initialisation",
                 .advice = "pass a barrier of the block between the two",
                 .pc = pc,
                 .has_other = true,
                 .other_thread = result.initialised.thread,
                 .other_pc = result.initialised_pc});
  }
  return result;
}

void Mbarriers::arrive(const void* barrier, int count, std::int64_t bytes, const void* pc) {
  Mbarrier& found = find(barrier, pc);
  if (count < 1 || count > found.pending) {
    block_.stop({.what = "arrives at an mbarrier more often than its phase has arrivals left",
                 .advice = "initialise it for all arrivals of a phase, or wait before the next one",
                 .pc = pc});
  }
  found.bytes += bytes;
  if (bytes < 0 || found.bytes > kMaxCount) {
    block_.stop({.what = "expects more bytes in a phase of an mbarrier than 2^20 - 1",
                 .advice = "copy less in a phase",
                 .pc = pc});
  }
  block_.shared().clocks().release(block_.thread_id(), found.arriving);
  found.pending -= count;
  finish_phase(found);
}

void Mbarriers::finish_phase(Mbarrier& barrier) {
  if (barrier.pending == 0 && barrier.bytes == 0) {
    ++barrier.phase;
    barrier.pending = barrier.arrivals;
    barrier.complete = std::exchange(barrier.arriving, {});
    barrier.complete_from_outside = std::exchange(barrier.arriving_from_outside, {});
  }
}

// Asked by the scheduler, hence without a fault, when no thread can go on: makes the copies if
// nothing else is missing. Any moment until then is one at which hardware may not have made them.
bool Mbarriers::complete(Mbarrier& barrier, unsigned parity) {
  if (!is_complete(barrier, parity) && barrier.pending == 0) {
    for (const BulkLoad& copy : std::exchange(barrier.copies, {})) {
      simt::finish(copy, block_.shared());
      barrier.bytes -= static_cast<std::int64_t>(copy.map.box_bytes);
    }
    finish_phase(barrier);
  }
  return is_complete(barrier, parity);
}

void Mbarriers::wait(const void* barrier, unsigned parity, const void* pc) {
  Mbarrier& found = find(barrier, pc);
  if (parity > 1) {
    block_.stop({.what = "waits for a phase of an mbarrier by a parity that is not 0 or 1",
                 .advice = "pass the phase's number % 2",
                 .pc = pc});
  }
  PhaseWait wait{.self = this, .barrier = &found, .parity = parity};
  const auto ready = [](void* argument) {
    const auto& waiting = *static_cast<PhaseWait*>(argument);
    return waiting.self->complete(*waiting.barrier, waiting.parity);
  };
  ++found.num_waiting;
  // Again, as a later phase may be complete too by the time that this thread runs.
  while (!is_complete(found, parity)) {
    block_.wait_until("a phase of an mbarrier", ready, &wait, pc);
  }
  --found.num_waiting;
  const int self = block_.thread_id();
  block_.shared().clocks().acquire(self, found.complete);
  for (const auto& [rank, carried] : found.complete_from_outside) {
    merge(heard_[self][rank], carried);
  }
}

void Mbarriers::fence() {
  const int self = block_.thread_id();
  for (auto& [address, barrier] : barriers_) {
    barrier.in_async_proxy = barrier.in_async_proxy || barrier.initialised.thread == self;
  }
}

void Mbarriers::require_copyable(const void* barrier, const void* pc) {
  const Mbarrier& found = find(barrier, pc);
  if (!found.in_async_proxy) {
    block_.stop({.what = "issues a bulk copy to an mbarrier that the async proxy does not see yet",
                 .advice = "call fence_mbarrier_init after mbarrier_init, in the same thread",
                 .pc = pc,
                 .has_other = true,
                 .other_thread = found.initialised.thread,
                 .other_pc = found.initialised_pc});
  }
}

void Mbarriers::add_copy(const void* barrier, const BulkLoad& copy) {
  Mbarrier& found = barriers_.at(address_of(barrier));
  // Who waits for the phase comes after the copy, which is noted as a write of the issuing thread.
  block_.shared().clocks().release(block_.thread_id(), found.arriving);
  found.copies.push_back(copy);
}

const char* Mbarriers::refuse_from_outside(const void* barrier) const {
  const auto found = barriers_.find(address_of(barrier));
  if (found == barriers_.end()) {
    return "uses an mbarrier of another block that nobody there has initialised";
  }
  const Clocks& clocks = block_.shared().clocks();
  if (options().check_races && !clocks.before(found->second.initialised, clocks.outside())) {
    return "uses an mbarrier of another block with no barrier of the cluster since its "
           "initialisation";
  }
  return nullptr;
}

const char* Mbarriers::arrive_from_outside(const void* barrier, const Sender& sender) {
  if (const char* const what = refuse_from_outside(barrier); what != nullptr) {
    return what;
  }
  Mbarrier& found = barriers_.at(address_of(barrier));
  if (found.pending < 1) {
    return "arrives at an mbarrier of another block more often than its phase has arrivals left";
  }
  sender.clocks.release(sender.thread, found.arriving_from_outside[sender.rank]);
  --found.pending;
  finish_phase(found);
  return nullptr;
}

const char* Mbarriers::refuse_copy_from_outside(const void* barrier) const {
  if (const char* const what = refuse_from_outside(barrier); what != nullptr) {
    return what;
  }
  return barriers_.at(address_of(barrier)).in_async_proxy
             ? nullptr
             : "issues a bulk copy to an mbarrier of another block that the async proxy does not "
               "see yet";
}

void Mbarriers::add_copy_from_outside(const void* barrier, const BulkLoad& copy) {
  Mbarrier& found = barriers_.at(address_of(barrier));
  Clocks& clocks = block_.shared().clocks();
  clocks.release(clocks.outside(), found.arriving);
  found.copies.push_back(copy);
}

Carried Mbarriers::heard(int thread, int rank) const {
  const auto of_thread = heard_.find(thread);
  if (of_thread == heard_.end()) {
    return {};
  }
  const auto of_rank = of_thread->second.find(rank);
  return of_rank == of_thread->second.end() ? Carried{} : of_rank->second;
}

void Mbarriers::end_block() {
  for (const auto& [address, barrier] : barriers_) {
    if (!barrier.copies.empty()) {
      block_.stop({.what = "issued a bulk copy that nobody has waited for when the block ended",
                   .advice = "wait for the phase of its mbarrier before the last thread leaves",
                   .pc = barrier.copies.front().pc});
    }
  }
}

std::string Mbarriers::describe_awaited() const {
  std::string text;
  for (const auto& [address, barrier] : barriers_) {
    if (barrier.num_waiting == 0) {
      continue;
    }
    text += "; phase " + std::to_string(barrier.phase) + " of the mbarrier at " +
            block_.shared().describe(address) + " lacks " + std::to_string(barrier.pending) +
            " arrivals and ";
    text += barrier.bytes >= 0
                ? std::to_string(barrier.bytes) + " bytes"
                : "has got " + std::to_string(-barrier.bytes) + " bytes more than it expects";
  }
  return text;
}

}  // namespace memphis::kernels::simt
