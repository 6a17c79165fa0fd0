// SPDX-License-Identifier: Apache-2.0
#include "tests/support/ranks.h"

#include <utility>

#include "csrc/core/error.h"

namespace memphis::test {
namespace {

std::unique_ptr<World>& the_world() {
  static std::unique_ptr<World> world;
  return world;
}

}  // namespace

World& process_world() {
  require(the_world() != nullptr, "a test of processes has the main of ranks_main.cpp");
  return *the_world();
}

void set_process_world(std::unique_ptr<World> world) {
  the_world() = std::move(world);
}

}  // namespace memphis::test
