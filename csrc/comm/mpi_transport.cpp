// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/mpi_transport.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <utility>

#include <spdlog/fmt/fmt.h>

#include "csrc/comm/check.h"
#include "csrc/comm/mpi_check.h"
#include "csrc/core/pause.h"

namespace memphis {
namespace {

// MPI counts in int. And a rank that waits for one message knows how far a large one is only by its
// parts: such a part takes less than HangLimits::lost_seconds on the slowest of networks.
constexpr std::size_t kMaxMessageBytes = std::size_t{16} << 20U;

// A message says by its tag which call it is of: in which order, so that a rank that is late or
// early by one does not take another's pieces for its own, and of which name, so that ranks that do
// not make the same calls wait for each other, which is seen, and never go on with each other's
// data. An MPI may have no larger tags than 32767.
int tag_of(std::uint32_t number, std::string_view name) {
  constexpr std::uint32_t kNumNames = 256;
  constexpr std::uint32_t kNumNumbers = 128;
  std::uint32_t hash = 2166136261U;  // FNV-1a
  for (const char character : name) {
    hash = (hash ^ static_cast<unsigned char>(character)) * 16777619U;
  }
  return static_cast<int>((number % kNumNumbers) * kNumNames + (hash >> 24U) % kNumNames);
}

// After how long, and how often, a rank that waits looks for whom.
constexpr double kLookSeconds = 1;

std::string error_string(int status) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  if (MPI_Error_string(status, text, &length) != MPI_SUCCESS) {
    return fmt::format("MPI error {}", status);
  }
  return {text, static_cast<std::size_t>(length)};
}

// Ranks may outnumber cores, where a rank that spins keeps the one that it waits for from running:
// 24 ranks on 2 cores take a thousand times as long.
constexpr int kNumYields = 64;
constexpr std::chrono::microseconds kLongestSleep{200};

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

MpiTransport::MpiTransport(MPI_Comm comm,
                           std::string axis,
                           std::vector<int> ranks,
                           Activity& activity)
    : comm_(comm), axis_(std::move(axis)), ranks_(std::move(ranks)), activity_(activity) {
  MEMPHIS_MPI(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
  MEMPHIS_MPI(MPI_Comm_rank(comm_, &rank_));
  MEMPHIS_MPI(MPI_Comm_size(comm_, &size_));
}

MpiTransport::~MpiTransport() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  // All members free a communicator together, which they do not where one fails.
  if (finalized == 0 && !failed_ && !leaving_ && std::uncaught_exceptions() == 0) {
    MPI_Comm_free(&comm_);
  }
}

void MpiTransport::exchange(std::span<const std::span<const std::byte>> to,
                            std::span<const std::span<std::byte>> from,
                            std::string_view name) {
  try {
    tag_ = tag_of(++num_exchanges_, name);
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
        fmt::format(
            "{} (rank {} of the {} ranks of the {} group)", error.what(), rank_, size_, axis_),
        error.code());
  }
}

void MpiTransport::receive(std::span<std::byte> piece, int peer) {
  for (std::size_t at = 0; at < piece.size(); at += kMaxMessageBytes) {
    const int length = static_cast<int>(std::min(kMaxMessageBytes, piece.size() - at));
    MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
    messages_.push_back({peer, length});
    MEMPHIS_MPI(MPI_Irecv(piece.data() + at, length, MPI_BYTE, peer, tag_, comm_, &request));
  }
}

void MpiTransport::send(std::span<const std::byte> piece, int peer) {
  for (std::size_t at = 0; at < piece.size(); at += kMaxMessageBytes) {
    const int length = static_cast<int>(std::min(kMaxMessageBytes, piece.size() - at));
    MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
    messages_.push_back({peer, -1});
    MEMPHIS_MPI(MPI_Isend(piece.data() + at, length, MPI_BYTE, peer, tag_, comm_, &request));
  }
}

// Throws what went wrong once all else is done: the others may still need this rank's pieces.
void MpiTransport::wait(std::string_view name) {
  const auto num_requests = static_cast<int>(requests_.size());
  done_.resize(requests_.size());
  statuses_.resize(requests_.size());
  std::exception_ptr error;
  Pause pause(kNumYields, kLongestSleep);
  auto last_progress = Activity::Clock::now();
  double next_look = kLookSeconds;
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
      activity_.progress();
      pause.reset();
      last_progress = Activity::Clock::now();
      next_look = kLookSeconds;
      continue;
    }
    if (leaving_) {
      free_requests();
      throw CommunicationError(
          fmt::format("{} is given up (this rank failed); see its message", name));
    }
    pause();
    const std::chrono::duration<double> idle = Activity::Clock::now() - last_progress;
    if (idle.count() > next_look) {
      watch(name);
      next_look += kLookSeconds;
    }
  }
  if (error) {
    std::rethrow_exception(error);
  }
}

// Says whom this rank has been waiting for, and gives up after the limit.
void MpiTransport::watch(std::string_view name) {
  std::vector<int> missing;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] != MPI_REQUEST_NULL) {
      missing.push_back(ranks_[static_cast<std::size_t>(messages_[i].peer)]);
    }
  }
  std::sort(missing.begin(), missing.end());
  missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
  activity_.set_missing(this, missing);
  const double limit = activity_.limits().hang_seconds;
  const double idle = activity_.idle_seconds_in(this);
  if (limit > 0 && idle > limit) {
    free_requests();
    throw_hang(name, idle, missing);
  }
}

void MpiTransport::check(const Message& message,
                         const MPI_Status& done,
                         int status,
                         std::string_view name) {
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
    throw CommunicationError(fmt::format("{}: {} rank {} failed ({}); see that rank's message",
                                         name,
                                         received ? "receiving from" : "sending to",
                                         message.peer,
                                         error_string(status)));
  }
}

// Leaves the requests to the end of the process, which is near.
void MpiTransport::free_requests() {
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] != MPI_REQUEST_NULL) {
      if (messages_[i].num_received >= 0) {
        MPI_Cancel(&requests_[i]);
      }
      MPI_Request_free(&requests_[i]);
    }
  }
}

}  // namespace memphis
