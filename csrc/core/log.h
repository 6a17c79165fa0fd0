// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <utility>

#include <spdlog/fmt/fmt.h>

// The log, on standard error. Standard output is for what a command was asked to print.
namespace memphis {

// Once, at start: plain lines, warnings and errors marked by their level.
void configure_log();

// From now on this process says warnings and errors alone.
void log_warnings_alone();

// Whether what log_info() says is shown.
bool logs_info();

// spdlog's default logger gets `message`. Its own templates would have fmt compiled again by each
// source that logs, which takes the compiler longer than the rest of most sources.
enum class LogLevel { info, warning, error };
void log(LogLevel level, std::string_view message);

template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::warning, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log(LogLevel::error, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace memphis
