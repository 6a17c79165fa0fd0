// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

namespace memphis {

// How many cores (of the system's counting: hardware threads) there are for this process.
struct Cores {
  int machine = 1;                   // that are online
  int allowed = 1;                   // that this process may run on (its affinity mask)
  int parent = 1;                    // that the process which started it may run on
  std::optional<double> quota = {};  // of processor time, where control groups limit it
};
Cores cores_of_process();

}  // namespace memphis
