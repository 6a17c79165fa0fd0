// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <CLI/CLI.hpp>

namespace memphis {

// `memphis bench machine`: measures what csrc/plan/machine.h has, and prints it as a machine file.
void add_bench_machine(CLI::App& bench);

}  // namespace memphis
