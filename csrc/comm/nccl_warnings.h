// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

// What NCCL warns of goes into the errors and the log of this program. NCCL itself would print it
// to stdout with a line that names its version: between what a command prints for other programs,
// and, where stdout is a pipe, in a buffer that a process which is killed takes along.
namespace memphis {

// From here on NCCL writes its warnings to memory of this process, unless the environment says how
// much it is to say (NCCL_DEBUG), and then it does as its users know it, or where
// (NCCL_DEBUG_FILE). Before NCCL's first call, which reads the environment, and before the process
// has threads.
void collect_nccl_warnings();

// Those that nobody has taken yet, the oldest first, without date and process. Any thread.
std::vector<std::string> take_nccl_warnings();

// Takes them and logs a line each.
void log_nccl_warnings();

// The name of an error with what was warned of before it, in the order in which it came: the first
// is the likeliest cause. Of many, the first and the last.
std::string with_warnings(std::string_view error, const std::vector<std::string>& warnings);

}  // namespace memphis
