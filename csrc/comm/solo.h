// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "csrc/comm/communicator.h"

namespace memphis {

// A group of one: whatever is asked for is here already.
std::unique_ptr<Communicator> make_solo(Device device);

// A job of one rank.
std::unique_ptr<World> make_solo_world();

}  // namespace memphis
