// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "csrc/config/config.h"
#include "csrc/config/sources.h"

namespace memphis {

// Fills in what was left to be derived and checks what no single key can decide. REQUIRES: every
// value that was given is in the range of its key. ConfigError, at the place of the value to
// change. A job has `num_ranks` ranks.
void resolve(Config& config, const Sources& sources, std::int64_t num_ranks);

// ConfigError, at its place, for the first key that was given a value and that, beside the others,
// says nothing: a run that leaves it out is the same. Of a resolved config that is to run; one that
// ran is read as it was.
void require_used(const Config& config, const Sources& sources);

// Why rows cannot travel to experts beside the work of another micro-batch, and what to change, as
// in "parallel.zero is 3 (...); use at most 2"; empty where they can. Of a resolved config.
std::string expert_overlap_refusal(const Config& config);
// The same of what tensor ranks gather and sum beside products.
std::string tensor_overlap_refusal(const Config& config);

}  // namespace memphis
