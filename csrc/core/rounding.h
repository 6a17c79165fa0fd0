// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "csrc/core/dtype.h"

namespace memphis {

// Whether each of `values` is what the number beside it in `exact`, which has as many, rounds to.
// What is not a number has many forms, and any value may stand beside it.
bool are_rounded(std::span<const bf16> values, std::span<const float> exact);

}  // namespace memphis
