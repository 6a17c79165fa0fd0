// SPDX-License-Identifier: Apache-2.0
#pragma once

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

// Multiprocessors that a communicator takes at most, each of which is a channel with buffers of its
// own. NCCL chooses how many it takes by how ranks are connected; without a limit, what it may take
// of the GPU's memory is not known before. On 8 H100 it takes 32 to exchange rows (NVIDIA/nccl
// issue 1685). NCCL_MAX_CTAS in the environment replaces both limits.
constexpr int kCollectiveCtas = 32;
// Of Traffic::messages and numbers. A rank of a pipeline may have eight messages under way, and an
// H100 has 132 multiprocessors.
constexpr int kFewCtas = 4;

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
                                                     Traffic traffic = Traffic::collectives,
                                                     int ranks_per_id = kNcclRanksPerId);

}  // namespace memphis
