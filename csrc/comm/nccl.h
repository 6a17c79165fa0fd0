// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "csrc/comm/activity.h"
#include "csrc/comm/communicator.h"

// Groups of ranks on GPUs: nccl.cpp, or no_nccl.cpp where the build has none.
namespace memphis {

// Whether this binary has them.
bool has_nccl();

// Settings of NCCL that this program counts on, where the environment does not set them. Before
// NCCL's first call, which reads them, and before the process has threads.
void set_nccl_defaults();

// How many ranks introduce themselves to one of them when a communicator is created: as many as
// NCCL lets in without making them take turns (NCCL_UID_STAGGER_THRESHOLD of its user guide, 256).
constexpr int kNcclRanksPerId = 256;

// What a rank's groups may have on a GPU at once.
struct NcclGroups {
  std::int64_t num_groups = 0;
  std::int64_t num_channels = 0;  // of all
  bool has_messages = false;      // which a pipeline starts to receive before they are sent
  std::int64_t num_multiprocessors = 0;
};
// Before the first group of the process. With messages NCCL connects ranks when a group is created
// and not at its first collective (NCCL_RUNTIME_CONNECT=0), and makes the stack as large as its
// kernels need then (NCCL_SET_STACK_SIZE=1): page-locked memory and a larger stack may wait for all
// that is on the GPU. PreflightError for what such groups would wait for ever with:
// NCCL_RUNTIME_CONNECT=1 or NCCL_LAUNCH_ORDER_IMPLICIT=1 with messages; kernels of all groups that
// do not fit on the GPU side by side, by `num_channels` or by NCCL_MAX_CTAS in its place.
void prepare_nccl(const NcclGroups& groups);

// The group of the ranks of `host`, over NCCL, for the GPU that the calling thread uses. Every
// member calls. `host` is used until this returns. PreflightError where there is no NCCL or no GPU.
//
// While communicators live, who waits for the GPU (core/device.h) watches them: if one fails, all
// of this process are given up, as work of one may wait for another's, and the wait throws
// CommunicationError. So does every later call. `activity` is told of each collective, and of the
// one in which the GPU stands while it is waited for; it and `axis` are named in the trace.
std::unique_ptr<Communicator> make_nccl_communicator(std::string axis,
                                                     Communicator& host,
                                                     Activity& activity,
                                                     int num_channels = kCollectiveChannels,
                                                     int ranks_per_id = kNcclRanksPerId);

}  // namespace memphis
