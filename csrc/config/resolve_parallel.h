// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/config/checker.h"
#include "csrc/config/config.h"

namespace memphis {

// The part of resolve() (validate.h) that is about ranks: how the degrees fold the `num_ranks` of the
// job, how layers are cut into stages, and what of a step may go on beside what. The model, the batch
// and the schedule are resolved.
void resolve_parallel(Config& config, std::int64_t num_ranks, const Checker& checker);

}  // namespace memphis
