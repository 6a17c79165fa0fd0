// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include <mpi.h>

#include "csrc/comm/communicator.h"
#include "csrc/comm/host_transport.h"

namespace memphis {

// Messages between the processes of one group.
class MpiTransport final : public HostTransport {
 public:
  // Owns `comm`, whose members are `ranks` of the job.
  MpiTransport(MPI_Comm comm, std::string axis, std::vector<int> ranks, Activity& activity);
  ~MpiTransport() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int rank_in_job(int rank) const override { return ranks_[static_cast<std::size_t>(rank)]; }

  // Empty pieces are not sent. So ranks of which only one thinks that a piece is empty wait for
  // each other, instead of throwing as for other sizes.
  void exchange(std::span<const std::span<const std::byte>> to,
                std::span<const std::span<std::byte>> from,
                std::string_view name) override;

  void leave() noexcept override { leaving_ = true; }

 private:
  // What a request is for.
  struct Message {
    int peer;
    int num_received;  // bytes expected; -1 for one that is sent
  };

  void receive(std::span<std::byte> piece, int peer);
  void send(std::span<const std::byte> piece, int peer);
  void wait(std::string_view name);
  void check(const Message& message, const MPI_Status& done, int status, std::string_view name);
  void watch(std::string_view name);
  void free_requests();

  MPI_Comm comm_;
  std::string axis_;
  std::vector<int> ranks_;
  Activity& activity_;
  int rank_ = 0;
  int size_ = 0;
  std::uint32_t num_exchanges_ = 0;
  int tag_ = 0;  // of this one
  // Of one exchange; kept, so that later ones allocate nothing.
  std::vector<MPI_Request> requests_;
  std::vector<Message> messages_;  // by request
  std::vector<int> done_;
  std::vector<MPI_Status> statuses_;
  bool failed_ = false;
  std::atomic<bool> leaving_ = false;
};

}  // namespace memphis
