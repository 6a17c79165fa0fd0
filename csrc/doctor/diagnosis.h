// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "csrc/comm/communicator.h"
#include "csrc/config/config.h"
#include "csrc/doctor/finding.h"
#include "csrc/doctor/instruments.h"

// What `memphis doctor` looks at. The ranks of a job look at their machines, at each other and at what
// the config names, and nothing is left behind.
namespace memphis::doctor {

struct NodeReport {
  std::string node;
  std::vector<int> ranks;
  std::vector<Finding> findings;
  bool is_good() const;
};

struct Diagnosis {
  std::vector<NodeReport> nodes;  // in the order of their first ranks
  std::vector<Finding> job;       // that no node answers for

  std::string text() const;
  // Of the first finding that is bad, those of nodes first; done where none is.
  ExitCode code() const;
  std::vector<std::string> nodes_that_are(bool good) const;
};

struct Question {
  std::optional<Config> config;  // for the ranks of the job; without one, less is looked at
  Finding config_finding;        // what reading it has found
  Device device = Device::cpu;
  std::string launched_by;                 // "mpirun", "srun with PMIx"
  std::vector<std::string> default_roots;  // the text where the config names none
};

// Every rank of `world` calls, with instruments of its own; the result is the first rank's, and empty
// on the others. What does not answer in time is a finding.
Diagnosis diagnose(World& world, const Question& question, const Instruments& instruments);

}  // namespace memphis::doctor
