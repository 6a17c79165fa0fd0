// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/core/device.h"

namespace memphis {

// A collective on its way through the GPU.
struct EnqueuedCollective {
  std::uint64_t number = 0;  // of those of this process
  std::string_view name;
  Event begun{Device::cuda, Event::Use::ordering};
  Event done{Device::cuda, Event::Use::ordering};
};

// All communicators of this process over NCCL, and what of theirs goes wrong or stands while
// somebody waits for the GPU. The kernels of one may stand, on the GPU, behind those of another, so
// what one waits for in vain they all do: they end together.
//
// NCCL wants no two threads in calls about one communicator (an abort least of all), and those
// about several in the same order on all ranks: its calls are made under one lock.
class NcclWatch final : public GpuWatch {
 public:
  // A communicator. All calls are under mutex().
  class Member {
   public:
    virtual ~Member() = default;
    // Throws what went wrong in the background.
    virtual void check() const = 0;
    // Within ncclGroupStart and ncclGroupEnd.
    virtual void abort() noexcept = 0;
    // The first that the GPU has not done; null if there is none.
    virtual const EnqueuedCollective* oldest() = 0;
    // Tells that the GPU stands in one of its own, or that it does not or nobody waits.
    virtual void stand_in(const EnqueuedCollective& collective) const = 0;
    virtual void stand_no_more() const = 0;
  };

  // Never destroyed: who waits for the GPU may do so while static objects go.
  static NcclWatch& instance();

  std::mutex& mutex() { return mutex_; }

  // From here on, all of them under mutex().
  void add(Member& member);
  void remove(Member& member) noexcept;
  // Throws what went wrong with one of them, or with one other than `except`, and gives all up.
  void check_locked(const Member* except = nullptr);
  // Ends what they have under way and closes them, for `reason`.
  void give_up_locked(std::string_view reason) noexcept;
  const std::string& reason() const { return reason_; }  // why they were given up
  std::uint64_t next_number() { return ++num_enqueued_; }

  // Of GpuWatch, and not under it.
  void check() override;
  void leave() noexcept override;
  void give_up() noexcept override;

 private:
  void look_where_the_gpu_stands();
  void stand_no_more() noexcept;

  std::mutex mutex_;
  std::vector<Member*> members_;
  std::string reason_;
  std::uint64_t num_enqueued_ = 0;
  std::chrono::steady_clock::time_point last_look_ = {};
  // Where the GPU was last seen to stand while somebody waits for it.
  const Member* stands_with_ = nullptr;
  std::uint64_t stands_in_ = 0;  // EnqueuedCollective::number
};

}  // namespace memphis
