// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "csrc/report/run_history.h"

namespace memphis {

// One HTML page of one run or several, laid over each other: with all that it shows in it, readable
// without scripts, fonts or anything else from elsewhere, light and dark.
std::string report_page(std::vector<RunHistory> runs);

}  // namespace memphis
