// SPDX-License-Identifier: Apache-2.0
#pragma once

// The log: spdlog's default logger, on standard error. Standard output is for what a command was
// asked to print.
#include <spdlog/spdlog.h>

namespace memphis {

// Once, at start: plain lines, warnings and errors marked by their level.
void configure_log();

}  // namespace memphis
