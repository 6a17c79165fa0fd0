// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "csrc/doctor/finding.h"
#include "csrc/doctor/gpu_survey.h"
#include "csrc/doctor/instruments.h"

namespace memphis::doctor {

// What one machine says of itself, without others.
struct NodeQuestion {
  int num_ranks = 1;       // of the job
  int num_ranks_here = 1;  // on this machine
  int num_gpus_needed = 0;
};
std::vector<Finding> check_node(const Instruments& instruments, const NodeQuestion& question);

// InfiniBand's ports, the other NICs, and which of them is near which GPU, from /sys.
std::vector<Finding> check_network(const std::filesystem::path& sys,
                                   const std::vector<GpuState>& gpus);

}  // namespace memphis::doctor
