// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace memphis {

// What the process returns to the shell and to a scheduler. Stable: job scripts requeue on some
// of these and hold on others.
enum class ExitCode : int {
  done = 0,
  internal = 1,
  config = 2,
  data = 3,
  checkpoint = 4,
  preflight = 5,
  preempted = 10,
  rank_lost = 11,
  hang = 12,
  bad_hardware = 13,
  diverged = 14,
};

// Every error of the project. The text reads
//   <what is wrong, with the values> (<why>); <what to do>
// and is shown to the user as it stands.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const noexcept { return code_; }

 private:
  ExitCode code_;
};

// A config file or an argument cannot be honoured. Nothing has been touched yet.
class ConfigError : public Error {
 public:
  explicit ConfigError(const std::string& message) : Error(ExitCode::config, message) {}
};

// A data file is missing, unreadable or not what it says it is.
class DataError : public Error {
 public:
  explicit DataError(const std::string& message) : Error(ExitCode::data, message) {}
};

// A checkpoint or a model folder is missing, incomplete or corrupt.
class CheckpointError : public Error {
 public:
  explicit CheckpointError(const std::string& message) : Error(ExitCode::checkpoint, message) {}
};

// This machine cannot do what the config asks: no such device, not enough memory or disk.
class PreflightError : public Error {
 public:
  explicit PreflightError(const std::string& message) : Error(ExitCode::preflight, message) {}
};

// Training produced a loss or a gradient that is not finite.
class DivergedError : public Error {
 public:
  explicit DivergedError(const std::string& message) : Error(ExitCode::diverged, message) {}
};

// A function was called outside its contract: a defect of the caller, not of the user's input.
class ContractError : public Error {
 public:
  explicit ContractError(const std::string& message) : Error(ExitCode::internal, message) {}
};

// The place is taken by default arguments and not by std::source_location, which clang 14's tools
// cannot parse from libstdc++ 12.
[[noreturn]] void throw_contract_error(std::string_view message,
                                       const char* file,
                                       int line,
                                       const char* function);

// Contracts are always on. Throws ContractError, which names the caller's file, line and function.
inline void require(bool condition,
                    std::string_view message,
                    const char* file = __builtin_FILE(),
                    int line = __builtin_LINE(),
                    const char* function = __builtin_FUNCTION()) {
  if (!condition) {
    throw_contract_error(message, file, line, function);
  }
}

}  // namespace memphis
