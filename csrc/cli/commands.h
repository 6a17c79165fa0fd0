// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"

namespace memphis {

// Each adds one command to the program: its arguments, its help, and what runs when it is chosen. A
// command reports failure by throwing Error.
void add_train_command(CLI::App& program);
void add_plan_command(CLI::App& program);
void add_logits_command(CLI::App& program);
void add_evaluate_command(CLI::App& program);
void add_export_command(CLI::App& program);
void add_generate_command(CLI::App& program);
void add_bench_command(CLI::App& program);
void add_report_command(CLI::App& program);
void add_docs_command(CLI::App& program);
void add_doctor_command(CLI::App& program);
void add_tokenize_command(CLI::App& program);

// `CONFIG [section.key=value ...]`, as train, plan and bench step take it.
struct ConfigArguments {
  std::string file;
  std::vector<std::string> overrides;
};
void add_config_arguments(CLI::App& command, ConfigArguments& arguments);
// The config for the ranks of `world`. Every rank calls; the first one reads the file, which may be
// a pipe, for all.
Config load_config_of_job(const ConfigArguments& arguments, World& world);

// Holds all options of all commands to what they have alike: a value is not empty, except that of
// --prompt, which may ask for text from nothing, and a number is spelt as in a config, so that 010
// is not 8. To be called once they are there.
void check_values(CLI::App& program);

// For an option that is a whole number of `least` to `most`. CLI11 takes what is beyond its type
// for the last one within.
CLI::Validator whole(std::int64_t least,
                     std::int64_t most = std::numeric_limits<std::int32_t>::max());
// For an option that is a finite number of `least` or more. CLI11's own names the largest double, and
// lets through what is not a number.
CLI::Validator at_least(int least);
CLI::Validator within(double least, double most);
// For an option that is one of some words. A word that is none is told which was probably meant.
CLI::Validator one_of(const std::vector<std::string>& words);

}  // namespace memphis
