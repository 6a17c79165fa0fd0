// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "csrc/core/device.h"

namespace memphis::doctor {

// Of the file system that a path lies on.
struct Space {
  std::uint64_t free_bytes = 0;  // for this user
  std::uint64_t total_bytes = 0;
};

// By which a rank looks at its machine. Tests replace them, so that a machine can be sick that is not.
struct Instruments {
  std::string node;  // as the scheduler calls it
  std::filesystem::path sys = "/sys";
  std::filesystem::path shared_memory = "/dev/shm";
  std::string nvml;                 // the library
  std::uint64_t memlock_bytes = 0;  // the most that may be pinned; 2^64 - 1: all
  std::uint64_t num_files = 0;      // the most that may be open
  double patience_seconds = 10;     // with what does not answer
  std::function<Space(const std::filesystem::path&)> space;  // DataError where there is none
  std::function<std::int64_t()> wall_nanoseconds;            // since 1970
  std::function<double()> product_tflops;                    // of one of matrices, right now
  std::function<double()> copy_gb_per_second;                // of memory, right now
  bool rates_are_shared = true;  // the two above are a processor's, which ranks of a node share
  std::function<double(const std::filesystem::path&)> write_mb_per_second;  // of a file, durable
};

// Of this machine, with `root` in place of / for /sys and /dev/shm. Rates are of `device`.
Instruments instruments_of(Device device, const std::filesystem::path& root);

}  // namespace memphis::doctor
