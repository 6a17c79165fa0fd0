// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

// As much of NCCL's interface as csrc/comm uses, for the simulated device (core/device_simt.cpp):
// names, values and meanings are those of NCCL 2.27's user guide. Ranks are processes or threads of
// one machine.
//
// Blocking    communicators are nonblocking (config.blocking = 0) and no others: a thread of each
//             does the work. ncclCommGetAsyncError says ncclInProgress while it connects or parts,
//             and from the first call of a kind, or the first to or from a rank, until all whom it
//             concerns have come to theirs.
// Async       a call is on its stream once ncclGroupEnd has returned ncclSuccess, or that is over.
//             It moves data later: behind what lay on the stream, in the order of the
//             communicator's calls, before what follows on the stream (core/device_simt.h). It is
//             done when the stream is. Of what has failed the stream is never done, as on a GPU,
//             until the communicator is aborted; who waits without a GpuWatch is let on.
// Memory      is to be there until the work is done: where freeing it on a GPU waits for the work,
//             here the work fails.
// Reductions  run in the order of ranks; sums of bf16 round at each addition.
// Checks      an error on every rank, whose text (ncclGetLastError) names the ranks and their
//             calls, where NCCL would wait for ever or exchange other memory: ranks that differ in
//             kind, count, type, op or root; ranks that wait for each other in different calls; a
//             rank that parts, aborts or dies while others wait for it; a range that is no live
//             memory of the device; operands that overlap without being in place.
// Leaves      nothing behind, however processes end: the memory in which ranks meet has no name in
//             the file system, and goes with the last process that has it mapped.

enum ncclResult_t {
  ncclSuccess = 0,
  ncclUnhandledCudaError = 1,
  ncclSystemError = 2,
  ncclInternalError = 3,
  ncclInvalidArgument = 4,
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7
};

enum ncclDataType_t {
  ncclInt32 = 2,
  ncclInt64 = 4,
  ncclFloat32 = 7,
  ncclFloat64 = 8,
  ncclBfloat16 = 9
};

enum ncclRedOp_t { ncclSum = 0, ncclMax = 2 };

struct ncclConfig_t {
  int blocking;
  const char* commName;
  int maxCTAs;
  int cgaClusterSize;
};
// NOLINTNEXTLINE: NCCL's own is a macro, too.
#define NCCL_CONFIG_INITIALIZER \
  { .blocking = 1, .commName = nullptr, .maxCTAs = 0, .cgaClusterSize = 4 }

constexpr std::size_t kNcclUniqueIdBytes = 128;
struct alignas(8) ncclUniqueId {
  char internal[kNcclUniqueIdBytes];
};

using ncclComm_t = struct ncclComm*;
using cudaStream_t = struct CUstream_st*;  // as the CUDA runtime declares it

ncclResult_t ncclGetVersion(int* version);
const char* ncclGetErrorString(ncclResult_t result);
// Of the last error that a call returned, or reported, to this thread. `comm` is not used.
const char* ncclGetLastError(ncclComm_t comm);

// The calling process must live until all ranks have connected.
ncclResult_t ncclGetUniqueId(ncclUniqueId* id);
// All ranks pass the same ids; they meet at the first.
ncclResult_t ncclCommInitRankScalable(ncclComm_t* comm,
                                      int num_ranks,
                                      int rank,
                                      int num_ids,
                                      ncclUniqueId* ids,
                                      ncclConfig_t* config);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* status);
// In progress until this rank's calls are done and all ranks have called it.
ncclResult_t ncclCommFinalize(ncclComm_t comm);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
// Ends whatever the communicator waits for; other ranks that wait for this one get ncclRemoteError.
ncclResult_t ncclCommAbort(ncclComm_t comm);

// Of the calling thread. Calls between the two go out as one; if one of them fails, none does.
ncclResult_t ncclGroupStart();
ncclResult_t ncclGroupEnd();

ncclResult_t ncclAllReduce(const void* send,
                           void* receive,
                           std::size_t count,
                           ncclDataType_t type,
                           ncclRedOp_t op,
                           ncclComm_t comm,
                           cudaStream_t stream);
ncclResult_t ncclAllGather(const void* send,
                           void* receive,
                           std::size_t send_count,
                           ncclDataType_t type,
                           ncclComm_t comm,
                           cudaStream_t stream);
ncclResult_t ncclReduceScatter(const void* send,
                               void* receive,
                               std::size_t receive_count,
                               ncclDataType_t type,
                               ncclRedOp_t op,
                               ncclComm_t comm,
                               cudaStream_t stream);
// `send` is read on the root alone.
ncclResult_t ncclBroadcast(const void* send,
                           void* receive,
                           std::size_t count,
                           ncclDataType_t type,
                           int root,
                           ncclComm_t comm,
                           cudaStream_t stream);
ncclResult_t ncclSend(const void* send,
                      std::size_t count,
                      ncclDataType_t type,
                      int peer,
                      ncclComm_t comm,
                      cudaStream_t stream);
ncclResult_t ncclRecv(void* receive,
                      std::size_t count,
                      ncclDataType_t type,
                      int peer,
                      ncclComm_t comm,
                      cudaStream_t stream);
