// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "csrc/checkpoint/store.h"
#include "csrc/comm/communicator.h"

namespace memphis {

// Calls `action` on the first rank with a way to read checkpoints back that all ranks share: while
// it runs, each of them reads its share of the files that are asked for. One rank alone would read
// for hours what many have written in minutes. Every rank calls; if `action` throws, all throw.
void with_all_reading_back(Communicator& all_host,
                           std::string_view name,
                           const std::function<void(const Verify& verify)>& action);

}  // namespace memphis
