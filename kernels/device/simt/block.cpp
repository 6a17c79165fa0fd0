// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/block.h"

#include <algorithm>
#include <bit>
#include <map>
#include <numeric>
#include <string_view>
#include <utility>

#include "csrc/core/simt_memory.h"
#include "kernels/device/simt/cluster.h"
#include "kernels/device/simt/grid_waits.h"
#include "kernels/device/simt/sanitizer.h"
#include "kernels/device/simt/symbols.h"

namespace memphis::kernels::simt {
namespace {

// Two calls of one line are two addresses where the compiler has unrolled a loop.
bool same_place(const void* a, const void* b) {
  if (a == b) {
    return true;
  }
  static thread_local std::map<const void*, std::string> texts;
  const auto text = [](const void* pc) -> const std::string& {
    const auto [found, added] = texts.try_emplace(pc);
    if (added) {
      found->second = kernel_place(pc).text();
    }
    return found->second;
  };
  return text(a) == text(b);
}

}  // namespace

std::uint64_t Block::random() {  // splitmix64
  std::uint64_t z = random_ += 0x9E3779B97F4A7C15U;
  z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31U);
}

void Block::enter(void* block) {
  auto& self = *static_cast<Block*>(block);
  set_in_kernel(true);
  self.call_->invoke(self.call_->arguments);
  set_in_kernel(false);
  self.leave();
}

void Block::start(const KernelCall& call) {
  num_threads_ = static_cast<int>(call.block.x * call.block.y * call.block.z);
  const auto count = static_cast<std::size_t>(num_threads_);
  while (stacks_.size() < count) {
    stacks_.emplace_back();
  }
  if (threads_.size() < count) {
    threads_.resize(count);
  }
  num_exited_ = 0;
  num_at_barrier_ = 0;
  barrier_pcs_differ_ = false;
  fault_ = {};
  deadlock_.clear();
  for (NamedBarrier& barrier : named_) {
    barrier.expected = 0;
    barrier.arrived = 0;
    barrier.waiting.clear();
  }
  warps_.resize(static_cast<std::size_t>(num_warps()));
  for (Warp& warp : warps_) {
    warp.present = 0;
    warp.ready = 0;
    warp.gatherings.clear();
  }
  Index3 index;
  for (int i = 0; i < num_threads_; ++i) {
    Thread& thread = threads_[static_cast<std::size_t>(i)];
    thread.id = i;
    thread.index = index;
    set_state(thread, State::ready);
    thread.stack_bottom = stacks_[static_cast<std::size_t>(i)].bottom();
    thread.copy_groups.clear();
    thread.open_group.clear();
    thread.fiber.start(stacks_[static_cast<std::size_t>(i)], &Block::enter, this, outside_);
    warps_[static_cast<std::size_t>(i / kWarpSize)].present |=
        1U << static_cast<unsigned>(i % kWarpSize);
    if (++index.x == call.block.x) {
      index.x = 0;
      if (++index.y == call.block.y) {
        index.y = 0;
        ++index.z;
      }
    }
  }
}

void Block::begin(
    const KernelCall& call, Index3 index, std::int64_t linear_index, Cluster& cluster, int rank) {
  call_ = &call;
  cluster_ = &cluster;
  rank_ = rank;
  num_at_cluster_barrier_ = 0;
  index_ = index;
  linear_index_ = linear_index;
  random_ = options().seed + static_cast<std::uint64_t>(linear_index) * 0x2545F4914F6CDD1DU;
  start(call);
  shared_.begin_block(call.dynamic_shared_bytes, num_threads_, options().check_races);
  mbarriers_.begin_block();
  bulk_copies_.begin_block(num_threads_);
  warpgroups_.begin_block(num_warps());
  counts_traffic_ = options().count_traffic;
  if (counts_traffic_) {
    traffic_.begin_block(num_warps());
  }
  order_.resize(warps_.size());
  std::iota(order_.begin(), order_.end(), 0);
}

bool Block::advance() {
  running_ = this;
  if (options().seed != 0) {
    for (std::size_t i = order_.size(); i > 1; --i) {
      std::swap(order_[i - 1], order_[random() % i]);
    }
  }
  bool progress = false;
  for (const int warp : order_) {
    progress = run_warp(warp) || progress;
    if (fault_.what != nullptr) {
      break;
    }
  }
  running_ = nullptr;
  return progress;
}

bool Block::wake() {
  running_ = this;
  const bool woken = poll_conditions() || barrier_is_one_place();
  running_ = nullptr;
  return woken;
}

void Block::end() {
  if (counts_traffic_) {
    traffic_.end_block(call_->kernel);
  }
  current_ = nullptr;
  now = {};
}

void Block::set_state(Thread& thread, State state) {
  thread.state = state;
  unsigned& ready = warps_[static_cast<std::size_t>(thread.id / kWarpSize)].ready;
  const unsigned lane = 1U << static_cast<unsigned>(thread.id % kWarpSize);
  ready = state == State::ready ? ready | lane : ready & ~lane;
}

// Until each lane of the warp waits or has left; false if there was nothing to run.
bool Block::run_warp(int warp) {
  bool progress = false;
  while (fault_.what == nullptr) {
    pass_ = {.warp = warp,
             .count = std::min(kWarpSize, num_threads_ - warp * kWarpSize),
             .shuffle = options().seed == 0 ? 0 : random(),
             .position = 0};
    Thread* const thread = next_lane();
    if (thread == nullptr) {
      break;
    }
    progress = true;
    thread->fiber.resume();
  }
  return progress;
}

// The next of the pass that is ready, which becomes the current one; null at its end.
Thread* Block::next_lane() {
  const unsigned ready = warps_[static_cast<std::size_t>(pass_.warp)].ready;
  if (ready == 0) {
    return nullptr;
  }
  const auto count = static_cast<std::uint64_t>(pass_.count);
  const auto first = static_cast<int>((pass_.shuffle >> 1U) % count);
  while (pass_.position < pass_.count) {
    const int sum = pass_.position++ + first;
    const int turned = sum < pass_.count ? sum : sum - pass_.count;
    const int lane = (pass_.shuffle & 1U) == 0 ? turned : pass_.count - 1 - turned;
    if ((ready >> static_cast<unsigned>(lane) & 1U) == 0) {
      continue;
    }
    current_ = &threads_[static_cast<std::size_t>(pass_.warp * kWarpSize + lane)];
    now = {.block = linear_index_, .thread = current_->id};
    return current_;
  }
  return nullptr;
}

// The current thread, which is not ready, is left for the next of the pass, or for the executor.
void Block::hand_on() {
  Thread& self = *current_;
  Thread* const next = next_lane();
  if (next != nullptr) {
    self.fiber.hand_on_to(next->fiber);
  } else {
    self.fiber.suspend();
  }
}

bool Block::poll_conditions() {
  bool progress = false;
  for (int i = 0; i < num_threads_; ++i) {
    Thread& thread = threads_[static_cast<std::size_t>(i)];
    if (thread.state == State::waiting &&
        (thread.wait == Wait::condition || thread.wait == Wait::grid) &&
        thread.condition(thread.condition_argument)) {
      set_state(thread, State::ready);
      progress = true;
    }
  }
  return progress;
}

void Block::suspend(Wait wait, const char* what, const void* pc) {
  Thread& self = *current_;
  set_state(self, State::waiting);
  self.wait = wait;
  self.waits_for = what;
  self.pc = pc;
  hand_on();
}

void Block::release(int thread) {
  set_state(threads_[static_cast<std::size_t>(thread)], State::ready);
}

void Block::stop(const Fault& fault) {
  fault_ = fault;
  fault_.thread = current_->id;
  current_->fiber.suspend();
  __builtin_unreachable();  // a thread with a fault is never resumed
}

void Block::leave() {
  Thread& self = *current_;
  wait_copies(0);
  finish_copies(self.open_group);
  bulk_copies_.leave();
  warpgroups_.leave();
  if (num_exited_ + 1 == num_threads_) {
    mbarriers_.end_block();
  }
  set_state(self, State::exited);
  ++num_exited_;
  Warp& warp = warps_[static_cast<std::size_t>(self.id / kWarpSize)];
  warp.present &= ~(1U << static_cast<unsigned>(self.id % kWarpSize));
  for (std::size_t i = warp.gatherings.size(); i > 0; --i) {
    if (is_complete(warp, warp.gatherings[i - 1])) {
      complete(warp, warp.gatherings[i - 1]);
    }
  }
  hand_on();
}

void Block::sync_block(const void* pc) {
  barrier_pcs_differ_ = barrier_pcs_differ_ || (num_at_barrier_ > 0 && pc != barrier_pc_);
  barrier_pc_ = pc;
  if (++num_at_barrier_ < num_threads_ || barrier_pcs_differ_) {
    suspend(Wait::block, "the barrier of the block", pc);
    return;
  }
  release_barrier();
}

void Block::release_barrier() {
  num_at_barrier_ = 0;
  barrier_pcs_differ_ = false;
  shared_.clocks().barrier();
  if (counts_traffic_) {
    traffic_.converge_all();
  }
  for (int i = 0; i < num_threads_; ++i) {
    release(i);
  }
}

// All threads are at a barrier of the block, at different addresses: goes on if these are one line
// of the source, which the compiler has copied, and is a fault if they are not.
bool Block::barrier_is_one_place() {
  if (num_at_barrier_ < num_threads_) {
    return false;
  }
  const void* const first = threads_.front().pc;
  for (int i = 1; i < num_threads_; ++i) {
    const Thread& thread = threads_[static_cast<std::size_t>(i)];
    if (!same_place(first, thread.pc)) {
      fault_ = {.what = "waits at this barrier of the block while another thread waits at another",
                .advice = "let all threads of the block pass the same __syncthreads",
                .thread = i,
                .pc = thread.pc,
                .has_other = true,
                .other_thread = 0,
                .other_pc = first};
      return false;
    }
  }
  release_barrier();
  return true;
}

void Block::sync_cluster(const void* pc) {
  ++num_at_cluster_barrier_;
  if (!cluster_->pass_barrier()) {
    suspend(Wait::cluster, "the barrier of the cluster", pc);
  }
}

void Block::release_cluster_barrier() {
  num_at_cluster_barrier_ = 0;
  shared_.clocks().barrier();
  if (counts_traffic_) {
    traffic_.converge_all();
  }
  for (int i = 0; i < num_threads_; ++i) {
    release(i);
  }
}

const char* Block::arrive_from_outside(const void* barrier, const Mbarriers::Sender& sender) {
  return mbarriers_.arrive_from_outside(barrier, sender);
}

const char* Block::deliver_from_outside(const void* barrier,
                                        const BulkLoad& copy,
                                        const Carried& known,
                                        Fault& fault) {
  if (const char* const what = mbarriers_.refuse_copy_from_outside(barrier); what != nullptr) {
    return what;
  }
  Clocks& clocks = shared_.clocks();
  clocks.acquire(clocks.outside(), known);
  if (!shared_.access(address_of(copy.to),
                      copy.map.box_bytes,
                      Access::async_write,
                      clocks.outside(),
                      copy.pc,
                      fault)) {
    return fault.what;
  }
  shared_.begin_copy(address_of(copy.to), copy.map.box_bytes);
  mbarriers_.add_copy_from_outside(barrier, copy);
  return nullptr;
}

void Block::sync_named(int id, int num_threads, bool wait, const void* pc) {
  if (id < 1 || id >= kNumNamedBarriers || num_threads <= 0 || num_threads > num_threads_ ||
      num_threads % kWarpSize != 0) {
    stop({.what = "names a barrier that does not exist, or a number of threads that is no whole "
                  "number of the block's warps",
          .advice = "use 1 to 15, and a multiple of 32",
          .pc = pc});
  }
  NamedBarrier& barrier = named_[static_cast<std::size_t>(id)];
  if (barrier.expected != 0 && barrier.expected != num_threads) {
    stop({.what = "arrives at a named barrier with another number of threads than those before",
          .advice = "give the same number at both",
          .pc = pc});
  }
  barrier.expected = num_threads;
  const int self = current_->id;
  shared_.clocks().release(self, barrier.carried);
  if (wait) {
    barrier.waiting.push_back(self);
  }
  if (++barrier.arrived < num_threads) {
    if (wait) {
      suspend(Wait::named, "a named barrier", pc);
    }
    return;
  }
  for (const int thread : barrier.waiting) {
    shared_.clocks().acquire(thread, barrier.carried);
    release(thread);
  }
  barrier.expected = 0;
  barrier.arrived = 0;
  barrier.waiting.clear();
  barrier.carried.interval = 0;
}

void Block::collective(
    const char* instruction, unsigned mask, void* operand, Compute compute, const void* pc) {
  const auto lane = static_cast<unsigned>(current_->id % kWarpSize);
  const unsigned self = 1U << lane;
  Warp& warp = warps_[static_cast<std::size_t>(current_->id / kWarpSize)];
  if ((mask & self) == 0) {
    stop({.what = "takes part in an instruction of the warp whose mask leaves it out",
          .advice = "put the lane into the mask",
          .pc = pc});
  }
  Gathering* gathering = nullptr;
  for (Gathering& open : warp.gatherings) {
    if ((open.mask & mask) == 0) {
      continue;
    }
    // Their names are mostly one literal, which spares a look at the text.
    if (open.mask != mask ||
        (open.instruction != instruction && std::string_view(open.instruction) != instruction)) {
      const auto other = static_cast<std::size_t>(std::countr_zero(open.arrived));
      const Thread& waiting =
          threads_[static_cast<std::size_t>(current_->id / kWarpSize * kWarpSize) + other];
      stop({.what = "is at an instruction of the warp while another lane of its mask waits at "
                    "another",
            .advice = "let the lanes of the mask converge",
            .pc = pc,
            .has_other = true,
            .other_thread = waiting.id,
            .other_pc = waiting.pc});
    }
    gathering = &open;
  }
  if (gathering == nullptr) {
    gathering = &warp.gatherings.emplace_back(Gathering{.mask = mask,
                                                        .arrived = 0,
                                                        .instruction = instruction,
                                                        .compute = compute,
                                                        .operands = {}});
  }
  gathering->arrived |= self;
  gathering->operands[lane] = operand;
  if (!is_complete(warp, *gathering)) {
    suspend(Wait::lanes, instruction, pc);
    return;
  }
  complete(warp, *gathering);
}

// Those who have left the kernel are not waited for.
bool Block::is_complete(const Warp& warp, const Gathering& gathering) {
  return (gathering.mask & warp.present & ~gathering.arrived) == 0;
}

// Done for all by the lane that came last, or that left: it is over before anybody goes on.
void Block::complete(Warp& warp, const Gathering& gathering) {
  const Gathering done = gathering;
  if (counts_traffic_ && (warp.present & ~done.arrived) == 0) {
    traffic_.converge(current_->id / kWarpSize);
  }
  warp.gatherings.erase(warp.gatherings.begin() + (&gathering - warp.gatherings.data()));
  const int first = current_->id / kWarpSize * kWarpSize;
  std::array<int, kWarpSize> threads{};
  std::size_t count = 0;
  for (unsigned lanes = done.arrived; lanes != 0; lanes &= lanes - 1) {
    threads[count++] = first + std::countr_zero(lanes);
  }
  if (done.compute != nullptr) {
    void* operands[kWarpSize];
    std::copy(done.operands.begin(), done.operands.end(), operands);
    done.compute(operands, done.arrived);
  } else {
    shared_.clocks().join({threads.data(), count});
  }
  for (std::size_t i = 0; i < count; ++i) {
    release(threads[i]);
  }
}

void Block::wait_until(const char* what, bool (*ready)(void*), void* argument, const void* pc) {
  current_->condition = ready;
  current_->condition_argument = argument;
  suspend(Wait::condition, what, pc);
}

void Block::wait_for_grid(const char* what, bool (*ready)(void*), void* argument, const void* pc) {
  current_->condition = ready;
  current_->condition_argument = argument;
  suspend(Wait::grid, what, pc);
}

bool Block::waits_for_grid() const {
  return fault_.what == nullptr &&
         std::any_of(threads_.begin(), threads_.begin() + num_threads_, [](const Thread& thread) {
           return thread.state == State::waiting && thread.wait == Wait::grid;
         });
}

void Block::copy_async(void* shared, const void* global, std::size_t bytes, const void* pc) {
  if (global != nullptr) {
    access(global, bytes, Access::read, pc);
  }
  access(shared, bytes, Access::copy, pc);
  shared_.begin_copy(reinterpret_cast<std::uintptr_t>(shared), bytes);
  current_->open_group.push_back({.to = static_cast<std::byte*>(shared),
                                  .from = static_cast<const std::byte*>(global),
                                  .bytes = bytes,
                                  .pc = pc});
}

void Block::commit_copies() {
  current_->copy_groups.push_back(std::move(current_->open_group));
  current_->open_group.clear();
}

void Block::wait_copies(std::size_t pending) {
  Thread& self = *current_;
  while (self.copy_groups.size() > pending) {
    finish_copies(self.copy_groups.front());
    self.copy_groups.pop_front();
  }
}

void Block::finish_copies(const std::vector<Thread::Copy>& copies) {
  for (const Thread::Copy& copy : copies) {
    shared_.end_copy(reinterpret_cast<std::uintptr_t>(copy.to), copy.bytes);
    check(copy.to, copy.bytes, Access::copy, copy.pc);
    for (std::size_t i = 0; i < copy.bytes; ++i) {
      copy.to[i] = copy.from == nullptr ? std::byte{0} : copy.from[i];
    }
  }
}

void Block::access(const void* address, std::size_t bytes, Access access, const void* pc) {
  check(address, bytes, access, pc);
  if (counts_traffic_) {
    const auto begin = reinterpret_cast<std::uintptr_t>(address);
    const bool shared = shared_.contains(begin);
    if (shared || simt_memory::contains(begin)) {
      traffic_.note(begin, bytes, access, shared, current_->id, lanes_present(), pc);
    }
  }
}

void Block::check(const void* address, std::size_t bytes, Access access, const void* pc) {
  const auto begin = reinterpret_cast<std::uintptr_t>(address);
  if (begin - current_->stack_bottom < FiberStack::kBytes) {
    return;  // the thread's own
  }
  if (!shared_.contains(begin)) {
    access_global(begin, bytes, access, pc);
    return;
  }
  Fault fault;
  if (!shared_.access(begin, bytes, access, current_->id, pc, fault)) {
    stop(fault);
  }
}

void Block::access_global(std::uintptr_t address,
                          std::size_t bytes,
                          Access access,
                          const void* pc) {
  Fault fault = {.what = nullptr,
                 .advice = nullptr,
                 .thread = 0,
                 .pc = pc,
                 .address = address,
                 .bytes = bytes,
                 .access = access};
  if (simt_memory::contains(address)) {
    if (simt_memory::is_live(address, bytes)) {
      return;
    }
    fault.what = "of device memory that no live allocation holds";
    fault.advice = "check the index against the operand's shape";
  } else if (access == Access::read && Symbols::instance().in_image(address)) {
    return;  // constants of the program
  } else {
    fault.what = "of memory that is not the device's";
    fault.advice = "pass operands that lie on Device::cuda";
  }
  stop(fault);
}

}  // namespace memphis::kernels::simt
