// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>

#include <CLI/CLI.hpp>

namespace memphis {

// What is wrong with arguments that do not parse, with what was probably meant. `program` is what
// threw `error`.
std::string explain(const CLI::App& program, const CLI::ParseError& error);

// What is wrong with `word` in the place of a command, where it is none: one that is misspelt, or a
// config without a command. Nothing where it is a command or an option.
std::optional<std::string> explain_command(const CLI::App& program, const std::string& word);

}  // namespace memphis
