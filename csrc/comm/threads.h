// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

#include "csrc/comm/communicator.h"

namespace memphis {

// Runs `body` on `num_ranks` ranks, each a thread of this process, so that every layout is a plain
// test. They share this machine's cores out. Groups are of host memory alone.
//
// The first rank that throws ends the job: what the others wait for fails, and its exception is
// thrown here once all have returned.
void run_threads(int num_ranks, const std::function<void(World&)>& body);

}  // namespace memphis
