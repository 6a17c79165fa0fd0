// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace memphis {

// A file that a command writes where its user says.
struct OutputFile {
  std::string argument;  // "-o", as the user knows it
  std::string path;
  std::string_view what;                                   // "page": of which it may take the place
  std::function<bool(std::string_view beginning)> is_one;  // by its first MiB, or all of it
};

// ConfigError unless there is nothing to lose at that path: no file, an empty one, or one of the
// same kind; a pipe or a terminal too. DataError where that cannot be read. To be asked before the
// work whose result is to be written.
void require_may_write(const OutputFile& file);

// Calls `write`. PreflightError where it cannot write: what it writes is no checkpoint.
void write_output(const std::function<void()>& write);

}  // namespace memphis
