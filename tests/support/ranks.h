// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "csrc/comm/communicator.h"

namespace memphis::test {

// The job that this test runs in, of one rank unless mpirun started it. For tests with RANKS in
// tests/CMakeLists.txt, whose main is ranks_main.cpp.
World& process_world();

// For that main alone.
void set_process_world(std::unique_ptr<World> world);

}  // namespace memphis::test
