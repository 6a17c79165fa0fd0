// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace memphis::kernels::simt {

// How kernels are executed from now on. Set between launches.
struct Options {
  // Report two threads of a block that touch the same byte of shared memory, one of them writing,
  // with nothing that orders them.
  bool check_races = true;
  // The order in which blocks, warps and lanes run: 0 is ascending, any other number a shuffle.
  std::uint64_t seed = 0;
  // Count what accesses ask of the memory system (simt/traffic.h).
  bool count_traffic = false;
  // Blocks in flight; 0: as many as OpenMP has threads.
  int num_blocks = 0;
};
Options& options();

}  // namespace memphis::kernels::simt
