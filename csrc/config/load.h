// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/config/config.h"

namespace memphis {

// What a config is held against beside its own text.
//   machine    the files that it names, run.dir, the device and its limits: a config that is to run
//              here
//   elsewhere  home folders and variables that its paths name: a config that may run elsewhere
//   text       nothing: a config that ran, perhaps elsewhere, and is read back from a checkpoint
enum class Check : std::uint8_t { machine, elsewhere, text };

// Reads a config file and the overrides behind it on the command line, `section.key=value`, where
// the value is YAML: a scalar, or a list in brackets. An override replaces the file's value; no key
// may be given twice in either. What is left out comes from model.preset, then from config.h. Paths
// are read as path_text.h says.
//
// The result is resolved: whatever may be derived is filled in, and everything is in range. Reads
// the disk, writes nothing.
//
// ConfigError for what is written in the config, DataError for files that data.train or
// data.validation names, PreflightError where run.device is cuda and no GPU can be used. The text
// starts with "file:line:column" or "argument '...'".
// `num_ranks` are the ranks of the job, which the degrees of `parallel` divide up.
//
// The file may be a pipe, which can be read once: read_config, then parse_config, is the same.
Config load_config(const std::filesystem::path& file,
                   const std::vector<std::string>& overrides,
                   std::int64_t num_ranks = 1);

std::string read_config(const std::filesystem::path& file);

// The same from a text; `name` takes the place of the file's in error texts.
Config parse_config(std::string_view text,
                    std::string_view name,
                    const std::vector<std::string>& overrides,
                    Check check = Check::machine,
                    std::int64_t num_ranks = 1);

// Every key with its value, but for data.train where that is left out. parse_config makes an equal
// Config of it.
std::string to_yaml(const Config& config);

}  // namespace memphis
