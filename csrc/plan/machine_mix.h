// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "csrc/plan/machine.h"

// Jobs whose ranks are not all of one kind: 150,000 H100 beside 50,000 H200.
namespace memphis {

// Ranks of one kind.
struct MachinePart {
  Machine machine;
  std::int64_t num_ranks = 0;
};

// `--machine`: one machine, of which all `num_ranks` are, or NAME:RANKS,NAME:RANKS, whose ranks add
// up to it. ConfigError where they do not, where one of several has no number, and where a machine
// is not found (see find_machine) or cannot be one job with the others (see machine_of_all).
std::vector<MachinePart> parse_machine_parts(const std::string& text,
                                             std::int64_t num_ranks,
                                             const std::vector<std::filesystem::path>& folders);

// The machine that all of them are together. Ranks have equal shares of the work and wait for each
// other, so that memory, rates and links are those of whoever has least of each; what the maker
// promises, failures and power are the means over ranks, which MFU, time between failures and energy
// follow from. A machine that has one part of everything is that part.
//
// ConfigError where nodes or pods are of different sizes, whose ranks cannot be placed alike.
Machine machine_of_all(const std::vector<MachinePart>& parts);

// Seconds that a step would take if each part had work in proportion to its speed, where ranks of a
// part alone take `seconds_of_part` with equal shares. A bound: samples cannot be cut.
double seconds_of_proportional_shares(const std::vector<MachinePart>& parts,
                                      const std::vector<double>& seconds_of_part);

}  // namespace memphis
