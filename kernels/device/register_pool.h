// SPDX-License-Identifier: Apache-2.0
#pragma once

// Registers of a block on sm_90a. setmaxnreg moves them from warpgroup to warpgroup of one block,
// out of what the block was launched with: PTX ISA, "A pool of available registers is maintained
// per-CTA".
namespace memphis::kernels {

constexpr int kRegistersOfMultiprocessor = 65536;
constexpr int kRegisterUnit = 8;  // of a thread

// Of each thread of a block that has a multiprocessor to itself, as __launch_bounds__(threads, 1)
// asks for. What the rounding leaves is no block's: 384 threads have 168 each, 504 for the three
// warpgroups, and not 512.
constexpr int registers_at_launch(int num_threads) {
  constexpr int kMost = 256;
  const int even = kRegistersOfMultiprocessor / num_threads / kRegisterUnit * kRegisterUnit;
  return even < kMost ? even : kMost;
}

// Whether a producer warpgroup and `num_consumers` others can have so many. Where they cannot, the
// last of them waits for ever.
constexpr bool registers_suffice(int producer, int num_consumers, int consumer) {
  constexpr int kWarpgroupThreads = 128;
  const int num_groups = 1 + num_consumers;
  return producer + num_consumers * consumer <=
         num_groups * registers_at_launch(num_groups * kWarpgroupThreads);
}

}  // namespace memphis::kernels
