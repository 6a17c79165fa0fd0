// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "csrc/report/run_history.h"

// Parts of the page, each of one run; empty where the run has nothing to show there.
namespace memphis {

std::string summary_cards(const RunHistory& run, int color, bool named);
std::string time_by_phase(const RunHistory& run);
std::string expert_maps(const RunHistory& run);
std::string memory_and_layout(const RunHistory& run);
std::string restarts_and_config(const RunHistory& run);
std::string samples_of(const RunHistory& run);
std::string trace_section(const RunHistory& run);

}  // namespace memphis
