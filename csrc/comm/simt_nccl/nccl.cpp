// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <exception>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <spdlog/fmt/fmt.h>

#include <nccl.h>

#include "csrc/comm/simt_nccl/communicator.h"

struct ncclComm : memphis::simt_nccl::Communicator {
  using Communicator::Communicator;
  bool finalized = false;
};

namespace memphis::simt_nccl {
namespace {

// Of the calling thread, as NCCL keeps them.
struct ThreadState {
  int group_depth = 0;
  std::vector<std::pair<ncclComm_t, Call>> calls;  // of the group
  Failure group_failure;                           // of its first call that failed
  std::string last_error;
};

ThreadState& this_thread() {
  thread_local ThreadState state;
  return state;
}

ncclResult_t told(const Failure& failure) {
  if (failure.status != ncclSuccess && failure.status != ncclInProgress) {
    this_thread().last_error = failure.text;
  }
  return failure.status;
}

ncclResult_t refused(const std::string& text) {
  return told({ncclInvalidArgument, text});
}

// What `body` throws, as a result.
template <class Body>
ncclResult_t call(const Body& body) {
  try {
    return body();
  } catch (const Failure& failure) {
    return told(failure);
  } catch (const std::exception& error) {
    return told({ncclInternalError, error.what()});
  }
}

void require_ready(ncclComm_t comm) {
  if (comm == nullptr) {
    throw Failure{ncclInvalidArgument, "the communicator is null; make one first"};
  }
  const Failure failure = comm->status();
  if (failure.status == ncclInProgress) {
    throw Failure{ncclInvalidArgument,
                  "the communicator is still in progress (it connects or parts); wait until "
                  "ncclCommGetAsyncError says ncclSuccess"};
  }
  if (failure.status != ncclSuccess) {
    throw failure;
  }
}

// Gives each communicator its calls of the group. Returns whether one of them is in progress.
ncclResult_t launch(std::vector<std::pair<ncclComm_t, Call>> calls) {
  ncclResult_t result = ncclSuccess;
  while (!calls.empty()) {
    const ncclComm_t comm = calls.front().first;
    const auto others = std::stable_partition(
        calls.begin(), calls.end(), [&](const auto& one) { return one.first == comm; });
    std::vector<Call> own;
    for (auto it = calls.begin(); it != others; ++it) {
      own.push_back(it->second);
    }
    calls.erase(calls.begin(), others);
    require_ready(comm);
    comm->make(std::move(own));
    if (comm->status().status == ncclInProgress) {
      result = ncclInProgress;
    }
  }
  return result;
}

ncclResult_t end_group() {
  ThreadState& state = this_thread();
  if (state.group_depth == 0) {
    return refused("ncclGroupEnd without an ncclGroupStart; mend the caller");
  }
  if (--state.group_depth > 0) {
    return ncclSuccess;
  }
  auto calls = std::exchange(state.calls, {});
  const Failure failure = std::exchange(state.group_failure, {});
  return call([&] {
    if (failure.status != ncclSuccess) {
      return told(failure);
    }
    return launch(std::move(calls));
  });
}

ncclResult_t add(ncclComm_t comm, const Call& added) {
  return call([&] {
    ThreadState& state = this_thread();
    try {
      require_ready(comm);
      if (const std::string problem = problem_of(added, comm->rank(), comm->size());
          !problem.empty()) {
        const Failure failure{ncclInvalidUsage,
                              fmt::format("{}: rank {} makes {}: {}; mend the caller",
                                          comm->name(),
                                          comm->rank(),
                                          describe(added.terms),
                                          problem)};
        comm->fail(failure);
        throw failure;
      }
    } catch (const Failure& failure) {
      if (state.group_failure.status == ncclSuccess && state.group_depth > 0) {
        state.group_failure = failure;
      }
      throw;
    }
    ++state.group_depth;
    state.calls.emplace_back(comm, added);
    return end_group();
  });
}

const std::byte* bytes(const void* data) {
  return static_cast<const std::byte*>(data);
}
std::byte* bytes(void* data) {
  return static_cast<std::byte*>(data);
}

// What was called and will not be made.
void forget_calls(ncclComm_t comm) {
  auto& calls = this_thread().calls;
  calls.erase(std::remove_if(
                  calls.begin(), calls.end(), [&](const auto& one) { return one.first == comm; }),
              calls.end());
}

}  // namespace
}  // namespace memphis::simt_nccl

using namespace memphis::simt_nccl;

ncclResult_t ncclGetVersion(int* version) {
  *version = 22809;  // whose behaviour this is
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "operation in progress";
  }
  return "unknown result code";
}

const char* ncclGetLastError(ncclComm_t /*comm*/) {
  return this_thread().last_error.c_str();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  return call([&] {
    *id = Meeting::make_id();
    return ncclSuccess;
  });
}

ncclResult_t ncclCommInitRankScalable(ncclComm_t* comm,
                                      int num_ranks,
                                      int rank,
                                      int num_ids,
                                      ncclUniqueId* ids,
                                      ncclConfig_t* config) {
  return call([&] {
    *comm = nullptr;
    if (num_ranks < 1 || num_ranks > Meeting::kMaxRanks || rank < 0 || rank >= num_ranks) {
      return refused(
          fmt::format("rank {} of {} cannot be (1 to {} ranks are simulated, counted "
                      "from 0); mend the caller",
                      rank,
                      num_ranks,
                      Meeting::kMaxRanks));
    }
    if (num_ids < 1 || num_ids > num_ranks) {
      return refused(
          fmt::format("{} ids for {} ranks (one at least, and no more than ranks); mend "
                      "the caller",
                      num_ids,
                      num_ranks));
    }
    if (config == nullptr || config->blocking != 0) {
      return refused(
          "a blocking communicator is not simulated (nothing here uses one); set blocking to 0");
    }
    const auto length = static_cast<std::size_t>(num_ids);
    *comm = new ncclComm(config->commName == nullptr ? "nccl" : config->commName,
                         std::vector<ncclUniqueId>(ids, ids + length),
                         rank,
                         num_ranks,
                         config->maxCTAs);
    return ncclInProgress;
  });
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* status) {
  return call([&] {
    *status = told(comm->status());
    return ncclSuccess;
  });
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  return call([&] {
    require_ready(comm);
    if (comm->finalized) {
      return refused("the communicator is finalized already; mend the caller");
    }
    comm->finalized = true;
    comm->finalize();
    return ncclInProgress;
  });
}

// Blocks until the others part, where it is not finalized yet.
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  return call([&] {
    if (!comm->finalized) {
      require_ready(comm);
      comm->finalize();
    }
    while (comm->status().status == ncclInProgress) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    const Failure failure = comm->status();
    delete comm;
    return told(failure);
  });
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  return call([&] {
    forget_calls(comm);
    delete comm;
    return ncclSuccess;
  });
}

ncclResult_t ncclGroupStart() {
  ++this_thread().group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  return end_group();
}

ncclResult_t ncclAllReduce(const void* send,
                           void* receive,
                           std::size_t count,
                           ncclDataType_t type,
                           ncclRedOp_t op,
                           ncclComm_t comm,
                           cudaStream_t stream) {
  return add(comm,
             {.terms = {.kind = Kind::all_reduce, .type = type, .count = count, .op = op},
              .send = bytes(send),
              .receive = bytes(receive),
              .stream = stream});
}

ncclResult_t ncclAllGather(const void* send,
                           void* receive,
                           std::size_t send_count,
                           ncclDataType_t type,
                           ncclComm_t comm,
                           cudaStream_t stream) {
  return add(comm,
             {.terms = {.kind = Kind::all_gather, .type = type, .count = send_count},
              .send = bytes(send),
              .receive = bytes(receive),
              .stream = stream});
}

ncclResult_t ncclReduceScatter(const void* send,
                               void* receive,
                               std::size_t receive_count,
                               ncclDataType_t type,
                               ncclRedOp_t op,
                               ncclComm_t comm,
                               cudaStream_t stream) {
  return add(
      comm,
      {.terms = {.kind = Kind::reduce_scatter, .type = type, .count = receive_count, .op = op},
       .send = bytes(send),
       .receive = bytes(receive),
       .stream = stream});
}

ncclResult_t ncclBroadcast(const void* send,
                           void* receive,
                           std::size_t count,
                           ncclDataType_t type,
                           int root,
                           ncclComm_t comm,
                           cudaStream_t stream) {
  return add(comm,
             {.terms = {.kind = Kind::broadcast, .type = type, .count = count, .peer = root},
              .send = bytes(send),
              .receive = bytes(receive),
              .stream = stream});
}

ncclResult_t ncclSend(const void* send,
                      std::size_t count,
                      ncclDataType_t type,
                      int peer,
                      ncclComm_t comm,
                      cudaStream_t stream) {
  return add(comm,
             {.terms = {.kind = Kind::send, .type = type, .count = count, .peer = peer},
              .send = bytes(send),
              .stream = stream});
}

ncclResult_t ncclRecv(void* receive,
                      std::size_t count,
                      ncclDataType_t type,
                      int peer,
                      ncclComm_t comm,
                      cudaStream_t stream) {
  return add(comm,
             {.terms = {.kind = Kind::receive, .type = type, .count = count, .peer = peer},
              .receive = bytes(receive),
              .stream = stream});
}
