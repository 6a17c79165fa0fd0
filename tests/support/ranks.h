// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "csrc/comm/communicator.h"

namespace memphis::test {

// The job that this test runs in, of one rank unless mpirun started it. For tests with RANKS in
// tests/CMakeLists.txt, whose main is ranks_main.cpp.
World& process_world();

// Why so many ranks, those of this job, cannot have a GPU each, or share one; empty where they can.
std::string why_no_gpu_ranks(int num_ranks = process_world().size());

// For that main alone.
void set_process_world(std::unique_ptr<World> world);

}  // namespace memphis::test
