// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/launch_environment.h"
#include "csrc/comm/solo.h"
#include "csrc/comm/world.h"

namespace memphis {

std::unique_ptr<World> make_world() {
  const Variables variables = launch_variables();
  if (launched_by_mpi(variables)) {
    check_place(variables, Place{}, "this binary, built with -DMEMPHIS_MPI=OFF,");
  }
  return make_solo_world();
}

}  // namespace memphis
