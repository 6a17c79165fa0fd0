// SPDX-License-Identifier: Apache-2.0
#include "kernels/device/simt/cluster.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <span>

#include "kernels/device/simt/grid_waits.h"

namespace memphis::kernels::simt {
namespace {

constexpr const char* kAdvice =
    "order the two by cluster_sync, or by an mbarrier that the other block's readers arrive at";

// The place in `to` where `address` lies in `from`.
std::byte* place_in(Block& to, Block& from, const void* address) {
  return to.shared().dynamic() + (static_cast<const std::byte*>(address) - from.shared().dynamic());
}

}  // namespace

Cluster& Cluster::of_this_thread() {
  static thread_local Cluster cluster;
  return cluster;
}

bool Cluster::run(const KernelCall& call, std::int64_t first) {
  size_ = static_cast<std::size_t>(call.cluster);
  faulty_ = nullptr;
  while (blocks_.size() < size_) {
    blocks_.push_back(std::make_unique<Block>());
  }
  for (std::size_t rank = 0; rank < size_; ++rank) {
    const auto linear = first + static_cast<std::int64_t>(rank);
    const auto index = static_cast<std::uint64_t>(linear);
    blocks_[rank]->begin(call,
                         {.x = static_cast<unsigned>(index % call.grid.x),
                          .y = static_cast<unsigned>(index / call.grid.x % call.grid.y),
                          .z = static_cast<unsigned>(index / call.grid.x / call.grid.y)},
                         linear,
                         *this,
                         static_cast<int>(rank));
  }
  while (!is_over() && faulty_ == nullptr) {
    if (advance() || faulty_ != nullptr) {
      continue;
    }
    const std::uint64_t num_writes = call.grid_waits->num_writes();  // before flags are looked at
    if (wake() || faulty_ != nullptr) {
      continue;
    }
    const auto blocks = std::span(blocks_).first(size_);
    const bool waits_for_grid = std::any_of(
        blocks.begin(), blocks.end(), [](const auto& block) { return block->waits_for_grid(); });
    if (!waits_for_grid || !call.grid_waits->wait_beyond(num_writes)) {
      find_deadlock();
    }
  }
  for (std::size_t rank = 0; rank < size_; ++rank) {
    blocks_[rank]->end();
  }
  return faulty_ == nullptr;
}

bool Cluster::is_over() const {
  return std::all_of(blocks_.begin(),
                     blocks_.begin() + static_cast<std::ptrdiff_t>(size_),
                     [](const auto& block) { return block->is_over(); });
}

bool Cluster::advance() {
  bool progress = false;
  for (std::size_t turn = 0; turn < size_ && faulty_ == nullptr; ++turn) {
    const std::size_t rank = (turn + options().seed) % size_;
    progress = blocks_[rank]->advance() || progress;
    faulty_ = blocks_[rank]->is_at_fault() ? blocks_[rank].get() : nullptr;
  }
  return progress;
}

bool Cluster::wake() {
  bool woken = false;
  for (std::size_t rank = 0; rank < size_ && faulty_ == nullptr; ++rank) {
    woken = blocks_[rank]->wake() || woken;
    faulty_ = blocks_[rank]->is_at_fault() ? blocks_[rank].get() : nullptr;
  }
  return woken;
}

void Cluster::find_deadlock() {
  for (std::size_t rank = 0; rank < size_ && faulty_ == nullptr; ++rank) {
    if (!blocks_[rank]->is_over()) {
      blocks_[rank]->find_deadlock();
      faulty_ = blocks_[rank].get();
    }
  }
}

bool Cluster::pass_barrier() {
  for (std::size_t rank = 0; rank < size_; ++rank) {
    if (blocks_[rank]->num_at_cluster_barrier() < blocks_[rank]->num_threads()) {
      return false;
    }
  }
  for (std::size_t rank = 0; rank < size_; ++rank) {
    blocks_[rank]->release_cluster_barrier();
  }
  return true;
}

Block& Cluster::block(Block& from, int rank, const void* pc) {
  if (rank < 0 || static_cast<std::size_t>(rank) >= size_) {
    from.stop({.what = "names a block that its cluster has not",
               .advice = "launch it in clusters, and use ranks below their size",
               .pc = pc});
  }
  Block& to = *blocks_[static_cast<std::size_t>(rank)];
  if (&to != &from && to.num_exited() > 0) {
    from.stop({.what = "reaches the shared memory of a block of its cluster that threads have left",
               .advice = "let all threads of the cluster pass cluster_sync before they leave",
               .pc = pc});
  }
  return to;
}

void Cluster::arrive(Block& from, const void* barrier, int rank, const void* pc) {
  Block& to = block(from, rank, pc);
  if (&to == &from) {
    from.mbarriers().arrive(barrier, 1, 0, pc);
    return;
  }
  const Mbarriers::Sender sender = {
      .rank = from.rank(), .thread = from.thread_id(), .clocks = from.shared().clocks()};
  const char* const what = to.arrive_from_outside(place_in(to, from, barrier), sender);
  if (what != nullptr) {
    from.stop({.what = what, .advice = kAdvice, .pc = pc});
  }
}

void Cluster::load(Block& from,
                   void* shared,
                   const TensorMap& map,
                   const void* barrier,
                   const Coordinates& corner,
                   int num_coordinates,
                   unsigned ranks,
                   const void* pc) {
  from.bulk_copies().read_box(shared, map, corner, num_coordinates, pc);
  for (; ranks != 0; ranks &= ranks - 1) {
    const int rank = std::countr_zero(ranks);
    Block& to = block(from, rank, pc);
    if (&to == &from) {
      from.bulk_copies().deliver(shared, map, barrier, corner, pc);
      continue;
    }
    const BulkLoad copy = {
        .map = map, .corner = corner, .to = place_in(to, from, shared), .pc = pc};
    Fault fault = {.advice = kAdvice};
    const char* const what = to.deliver_from_outside(
        place_in(to, from, barrier), copy, from.mbarriers().heard(from.thread_id(), rank), fault);
    if (what != nullptr) {
      fault.what = what;
      fault.pc = pc;
      from.stop(fault);
    }
  }
}

}  // namespace memphis::kernels::simt
