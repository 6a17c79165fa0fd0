// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/doctor/finding.h"

namespace memphis::doctor {

// What NVML says of a GPU; of what it does not say, nothing.
struct GpuState {
  std::string pci_address = {};  // "0000:3b:00.0", as /sys/bus/pci has it
  unsigned sm_mhz = 0;
  unsigned max_sm_mhz = 0;
  std::uint64_t throttle_reasons = 0;    // NVML's bits
  std::uint64_t uncorrected_errors = 0;  // of memory, since the driver was loaded
  int links = 0;                         // of NVLink that are there
  int links_down = 0;
  std::vector<int> no_peers = {};  // GPUs of the machine that it cannot read
};

struct GpuSurvey {
  std::string unavailable;  // why nothing is known; empty: it is
  std::vector<GpuState> gpus;
};
GpuSurvey survey_gpus(const std::string& nvml);

// `num_needed` is how many ranks of this machine want one each.
std::vector<Finding> findings_of(const GpuSurvey& survey, int num_needed);

}  // namespace memphis::doctor
