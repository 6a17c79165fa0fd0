// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "csrc/config/config.h"
#include "csrc/doctor/finding.h"
#include "csrc/doctor/instruments.h"

namespace memphis::doctor {

// What the config names, looked at by one rank.

// Room for two checkpoints, and how fast it is written.
std::vector<Finding> check_run_directory(const Config& config, const Instruments& instruments);

// That the files are there, may be read, and begin as what memphis reads.
std::vector<Finding> check_data(const Config& config,
                                const std::vector<std::string>& default_roots);

// The newest one: all of it read back where it is small, else that its files have their sizes.
std::vector<Finding> check_checkpoint(const Config& config);

}  // namespace memphis::doctor
