// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include "csrc/comm/check.h"
#include "csrc/comm/host_communicator.h"
#include "csrc/comm/launch_environment.h"
#include "csrc/comm/mpi_check.h"
#include "csrc/comm/nccl.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/world.h"
#include "csrc/core/log.h"

namespace memphis {
namespace {

// MPI counts in int.
constexpr std::size_t kMaxMessageBytes = std::size_t{1} << 30U;

// The smallest that an MPI may have as its largest tag.
constexpr int kNumTags = 32768;

std::string error_string(int status) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(status, text, &length) != MPI_SUCCESS) {
    return fmt::format("MPI error {}", status);
  }
  return {text, static_cast<std::size_t>(length)};
}

// Waits a little longer each time. Ranks may outnumber cores, where a rank that spins keeps the one
// that it waits for from running: 24 ranks on 2 cores take a thousand times as long.
class Pause {
 public:
  void reset() { count_ = 0; }
  void operator()() {
    constexpr int kNumYields = 64;
    constexpr int kMaxMicroseconds = 200;
    if (count_ < kNumYields) {
      std::this_thread::yield();
    } else {
      const int doublings = std::min(count_ - kNumYields, 8);
      std::this_thread::sleep_for(
          std::chrono::microseconds(std::min(1 << doublings, kMaxMicroseconds)));
    }
    count_ = std::min(count_ + 1, kNumYields + 8);
  }

 private:
  int count_ = 0;
};

class MpiTransport final : public HostTransport {
 public:
  // Owns `comm`.
  MpiTransport(MPI_Comm comm, std::string axis) : comm_(comm), axis_(std::move(axis)) {
    MEMPHIS_MPI(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
    MEMPHIS_MPI(MPI_Comm_rank(comm_, &rank_));
    MEMPHIS_MPI(MPI_Comm_size(comm_, &size_));
  }

  ~MpiTransport() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // All members free a communicator together, which they do not where one fails.
    if (finalized == 0 && !failed_ && !leaving_ && std::uncaught_exceptions() == 0) {
      MPI_Comm_free(&comm_);
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  // Empty pieces are not sent. So ranks of which only one thinks that a piece is empty wait for
  // each other, instead of throwing as for other sizes.
  void exchange(std::span<const std::span<const std::byte>> to,
                std::span<const std::span<std::byte>> from,
                std::string_view name) override {
    try {
      // A rank that is late by one exchange or early must not take another's pieces for its own.
      tag_ = (tag_ + 1) % kNumTags;
      requests_.clear();
      messages_.clear();
      for (int r = 0; r < size_; ++r) {
        if (r != rank_) {
          receive(from[static_cast<std::size_t>(r)], r);
        }
      }
      for (int i = 1; i < size_; ++i) {
        const int r = (rank_ + i) % size_;  // not all to rank 0 first
        send(to[static_cast<std::size_t>(r)], r);
      }
      const auto own = static_cast<std::size_t>(rank_);
      if (to[own].size() == from[own].size() && to[own].data() != from[own].data() &&
          !to[own].empty()) {
        std::memcpy(from[own].data(), to[own].data(), to[own].size());
      }
      wait(name);
      if (to[own].size() != from[own].size()) {
        throw_sizes_differ(name, rank_, to[own].size(), rank_, from[own].size());
      }
    } catch (const CommunicationError& error) {
      failed_ = true;
      throw CommunicationError(
          fmt::format("{} ({} rank {} of {}): {}", name, axis_, rank_, size_, error.what()));
    }
  }

  void leave() noexcept override { leaving_ = true; }

 private:
  // What a request is for.
  struct Message {
    int peer;
    int num_received;  // bytes expected; -1 for one that is sent
  };

  void receive(std::span<std::byte> piece, int peer) {
    for (std::size_t at = 0; at < piece.size(); at += kMaxMessageBytes) {
      const int length = static_cast<int>(std::min(kMaxMessageBytes, piece.size() - at));
      MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
      messages_.push_back({peer, length});
      MEMPHIS_MPI(MPI_Irecv(piece.data() + at, length, MPI_BYTE, peer, tag_, comm_, &request));
    }
  }

  void send(std::span<const std::byte> piece, int peer) {
    for (std::size_t at = 0; at < piece.size(); at += kMaxMessageBytes) {
      const int length = static_cast<int>(std::min(kMaxMessageBytes, piece.size() - at));
      MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
      messages_.push_back({peer, -1});
      MEMPHIS_MPI(MPI_Isend(piece.data() + at, length, MPI_BYTE, peer, tag_, comm_, &request));
    }
  }

  // Throws what went wrong once all else is done: the others may still need this rank's pieces.
  void wait(std::string_view name) {
    const auto num_requests = static_cast<int>(requests_.size());
    done_.resize(requests_.size());
    statuses_.resize(requests_.size());
    std::exception_ptr error;
    Pause pause;
    for (int num_left = num_requests; num_left > 0;) {
      int num_done = 0;
      const int status =
          MPI_Testsome(num_requests, requests_.data(), &num_done, done_.data(), statuses_.data());
      if (status != MPI_SUCCESS && status != MPI_ERR_IN_STATUS) {
        MEMPHIS_MPI(status);
      }
      for (int i = 0; i < num_done; ++i) {
        try {
          const auto at = static_cast<std::size_t>(i);
          check(messages_[static_cast<std::size_t>(done_[at])],
                statuses_[at],
                status == MPI_ERR_IN_STATUS ? statuses_[at].MPI_ERROR : MPI_SUCCESS,
                name);
        } catch (const Error&) {
          error = error ? error : std::current_exception();
        }
      }
      num_left -= num_done;
      if (num_done > 0) {
        pause.reset();
      } else if (leaving_) {
        give_up();
      } else {
        pause();
      }
    }
    if (error) {
      std::rethrow_exception(error);
    }
  }

  void check(const Message& message, const MPI_Status& done, int status, std::string_view name) {
    const bool received = message.num_received >= 0;
    int error_class = MPI_SUCCESS;
    MPI_Error_class(status, &error_class);
    int length = message.num_received;
    if (received && (error_class == MPI_SUCCESS || error_class == MPI_ERR_TRUNCATE)) {
      MPI_Get_count(&done, MPI_BYTE, &length);
      if (length != message.num_received || error_class == MPI_ERR_TRUNCATE) {
        throw_sizes_differ(name,
                           message.peer,
                           static_cast<std::size_t>(length),
                           rank_,
                           static_cast<std::size_t>(message.num_received));
      }
    } else if (error_class != MPI_SUCCESS) {
      throw CommunicationError(fmt::format("{} rank {} failed ({}); see that rank's message",
                                           received ? "receiving from" : "sending to",
                                           message.peer,
                                           error_string(status)));
    }
  }

  // Leaves the requests to the end of the process, which is near.
  [[noreturn]] void give_up() {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] != MPI_REQUEST_NULL) {
        if (messages_[i].num_received >= 0) {
          MPI_Cancel(&requests_[i]);
        }
        MPI_Request_free(&requests_[i]);
      }
    }
    throw CommunicationError("given up (this rank failed); see its message");
  }

  MPI_Comm comm_;
  std::string axis_;
  int rank_ = 0;
  int size_ = 0;
  int tag_ = 0;
  // Of one exchange; kept, so that later ones allocate nothing.
  std::vector<MPI_Request> requests_;
  std::vector<Message> messages_;  // by request
  std::vector<int> done_;
  std::vector<MPI_Status> statuses_;
  bool failed_ = false;
  std::atomic<bool> leaving_ = false;
};

class MpiWorld final : public World {
 public:
  explicit MpiWorld(const Variables& variables) {
    int provided = MPI_THREAD_SINGLE;
    MEMPHIS_MPI(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided));
    MEMPHIS_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    if (provided != MPI_THREAD_MULTIPLE) {
      throw PreflightError(
          fmt::format("MPI gives thread level {} and not MPI_THREAD_MULTIPLE (groups "
                      "are driven by threads of their own); use an MPI that is "
                      "built with threads",
                      provided));
    }
    MEMPHIS_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &place_.rank));
    MEMPHIS_MPI(MPI_Comm_size(MPI_COMM_WORLD, &place_.size));
    MPI_Comm machine = MPI_COMM_NULL;
    MEMPHIS_MPI(MPI_Comm_split_type(
        MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, place_.rank, MPI_INFO_NULL, &machine));
    MEMPHIS_MPI(MPI_Comm_rank(machine, &place_.local_rank));
    MEMPHIS_MPI(MPI_Comm_free(&machine));
    check_place(variables, place_, "MPI");
  }

  // Finalizing waits for the others, who may wait for this rank elsewhere if it fails.
  ~MpiWorld() override {
    if (!aborted_ && std::uncaught_exceptions() == 0) {
      MPI_Finalize();
    }
  }

  int rank() const override { return place_.rank; }
  int size() const override { return place_.size; }
  int local_rank() const override { return place_.local_rank; }

  std::unique_ptr<Communicator> create_group(std::string axis,
                                             std::span<const int> ranks,
                                             Device device) override {
    require(std::find(ranks.begin(), ranks.end(), place_.rank) != ranks.end(),
            "a rank creates groups that it is in");
    if (ranks.size() == 1) {
      return make_solo(device);
    }
    MPI_Group all = MPI_GROUP_NULL;
    MPI_Group members = MPI_GROUP_NULL;
    MPI_Comm comm = MPI_COMM_NULL;
    MEMPHIS_MPI(MPI_Comm_group(MPI_COMM_WORLD, &all));
    MEMPHIS_MPI(MPI_Group_incl(all, static_cast<int>(ranks.size()), ranks.data(), &members));
    // Members alone call this, so that groups of one axis need not be made one after the other.
    MEMPHIS_MPI(MPI_Comm_create_group(MPI_COMM_WORLD, members, 0, &comm));
    MEMPHIS_MPI(MPI_Group_free(&members));
    MEMPHIS_MPI(MPI_Group_free(&all));
    auto transport = std::make_unique<MpiTransport>(comm, axis);
    auto host = std::make_unique<HostCommunicator>(axis, std::move(transport));
    if (device == Device::cpu) {
      return host;
    }
    return make_nccl_communicator(std::move(axis), *host);
  }

  void abort(ExitCode code, std::string_view reason) noexcept override {
    aborted_ = true;
    try {
      spdlog::error("rank {} ends the job: {}", place_.rank, reason);
    } catch (...) {
      // The job ends all the same.
    }
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(code));
  }

 private:
  Place place_;
  std::atomic<bool> aborted_ = false;
};

}  // namespace

void mpi_check(int status, const char* call, const char* file, int line) {
  if (status != MPI_SUCCESS) {
    throw CommunicationError(fmt::format("{} (from {}, {}:{}); see what the other ranks say",
                                         error_string(status),
                                         call,
                                         file,
                                         line));
  }
}

std::unique_ptr<World> make_world() {
  set_nccl_defaults();
  const Variables variables = launch_variables();
  // A process that nobody launched does without: MPI_Init starts a daemon for it and takes a
  // second.
  if (launched_by_mpi(variables)) {
    return std::make_unique<MpiWorld>(variables);
  }
  return make_solo_world();
}

}  // namespace memphis
