// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "bench/filled_tensor.h"

namespace memphis::test {

// Tests read the case tables of the benchmarks and fill their operands alike.
using namespace bench;  // NOLINT(google-build-using-namespace)
using TestTensor = FilledTensor;

// What the data of a test is drawn with: 1, or more by `--gtest_random_seed=N`. What a test claims
// holds whatever its data is, so it passes with every N. The data of random_normal and
// random_integers follow it.
std::uint64_t test_seed();

// The devices and dtypes that every op case runs on. A GPU case skips visibly, with the
// reason, where there is no GPU:  if (skip(target)) GTEST_SKIP() << reason;
std::vector<Target> all_targets();  // cpu f64, cpu f32, cpu bf16, cuda f32, cuda bf16
// Empty if the target can run here; else why not.
std::string skip_reason(const Target& target);

// What is smaller than a normal f32 as 0, for sums that a GPU adds in memory (weight_gradient.h).
std::vector<double> without_subnormals(std::vector<double> values);

}  // namespace memphis::test
