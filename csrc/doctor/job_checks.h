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

// That the tokenizer can be opened and the model has room for its ids.
Finding check_tokenizer(const Config& config);

// That the files are there, may be read, and begin as what memphis reads; of compressed ones, as
// far as that takes seconds, that they are whole.
std::vector<Finding> check_data(const Config& config,
                                const std::vector<std::string>& default_roots);

// Nothing where the config asks for none. Of the questions of data.evaluate all are read; of the
// weights of run.init_from, that they are of the config's model.
std::vector<Finding> check_questions(const Config& config);
std::vector<Finding> check_initial_weights(const Config& config);

// The newest one: all of it read back where it is small, else that its files have their sizes. Not
// of a run that another job is at.
std::vector<Finding> check_checkpoint(const Config& config);

}  // namespace memphis::doctor
