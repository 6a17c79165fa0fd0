// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "bench/filled_tensor.h"

namespace memphis::test {

// Tests read the case tables of the benchmarks and fill their operands alike.
using namespace bench;  // NOLINT(google-build-using-namespace)
using TestTensor = FilledTensor;

// The devices and dtypes that every op case runs on. A GPU case skips visibly, with the
// reason, where there is no GPU:  if (skip(target)) GTEST_SKIP() << reason;
std::vector<Target> all_targets();  // cpu f64, cpu f32, cpu bf16, cuda f32, cuda bf16
// Empty if the target can run here; else why not.
std::string skip_reason(const Target& target);

}  // namespace memphis::test
