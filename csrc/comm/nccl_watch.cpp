// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/nccl_watch.h"

#include <algorithm>

#include <nccl.h>

#include "csrc/comm/communicator.h"
#include "csrc/comm/nccl_warnings.h"

namespace memphis {
namespace {

// Between two looks at NCCL's errors and at what the GPU does, of who waits for it.
constexpr std::chrono::milliseconds kLookInterval{1};

}  // namespace

NcclWatch& NcclWatch::instance() {
  static NcclWatch& watch = *new NcclWatch;
  return watch;
}

void NcclWatch::add(Member& member) {
  members_.push_back(&member);
  set_gpu_watch(this);
}

void NcclWatch::remove(Member& member) noexcept {
  stand_no_more();
  members_.erase(std::find(members_.begin(), members_.end(), &member));
  if (members_.empty()) {
    set_gpu_watch(nullptr);
    reason_.clear();
  }
}

void NcclWatch::check_locked(const Member* except) {
  try {
    for (const Member* member : members_) {
      if (member != except) {
        member->check();
      }
    }
  } catch (const CommunicationError& error) {
    give_up_locked(error.what());
    throw;
  }
}

void NcclWatch::give_up_locked(std::string_view reason) noexcept {
  if (reason_.empty()) {
    reason_ = reason;
  }
  // As one: an abort frees memory, which waits for the kernels of those that are not aborted yet.
  (void)ncclGroupStart();
  for (Member* member : members_) {
    member->abort();
  }
  (void)ncclGroupEnd();
}

// A thread that is in a call checks by itself.
void NcclWatch::check() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  const auto now = std::chrono::steady_clock::now();
  if (!lock.owns_lock() || now - last_look_ < kLookInterval) {
    return;
  }
  last_look_ = now;
  check_locked();
  log_nccl_warnings();
  look_where_the_gpu_stands();
}

void NcclWatch::leave() noexcept {
  const std::lock_guard lock(mutex_);
  stand_no_more();
}

void NcclWatch::give_up() noexcept {
  const std::lock_guard lock(mutex_);
  give_up_locked("this rank failed");
}

void NcclWatch::look_where_the_gpu_stands() {
  const Member* owner = nullptr;
  const EnqueuedCollective* oldest = nullptr;
  for (Member* member : members_) {
    const EnqueuedCollective* const own = member->oldest();
    if (own != nullptr && (oldest == nullptr || own->number < oldest->number)) {
      owner = member;
      oldest = own;
    }
  }
  // One that has not begun waits for work of this rank's own.
  if (oldest == nullptr || !oldest->begun.is_done()) {
    stand_no_more();
  } else if (oldest->number != stands_in_) {
    owner->stand_in(*oldest);
    stands_with_ = owner;
    stands_in_ = oldest->number;
  }
}

void NcclWatch::stand_no_more() noexcept {
  if (stands_with_ != nullptr) {
    stands_with_->stand_no_more();
    stands_with_ = nullptr;
    stands_in_ = 0;
  }
}

}  // namespace memphis
