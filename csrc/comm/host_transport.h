// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace memphis {

// How bytes get from rank to rank of one group, in host memory. Collectives are built on this once
// (host_communicator.h), so that groups of threads and of processes give the same bits.
class HostTransport {
 public:
  virtual ~HostTransport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Rank of the job that is `rank` here.
  virtual int rank_in_job(int rank) const = 0;

  // Sends `to[r]` to rank r and receives `from[r]` from it, its own piece too, which may be
  // the same memory; the sizes of the two ends agree, or ContractError. Returns when all of `from`
  // has arrived and all of `to` may be changed. CommunicationError, naming `name` and who is
  // missing, if that cannot be.
  virtual void exchange(std::span<const std::span<const std::byte>> to,
                        std::span<const std::span<std::byte>> from,
                        std::string_view name) = 0;

  // This rank fails and will not exchange again: an exchange that waits in another thread throws
  // CommunicationError soon, and so does every later one. The others learn of it from
  // World::abort, not from here.
  virtual void leave() noexcept = 0;
};

}  // namespace memphis
