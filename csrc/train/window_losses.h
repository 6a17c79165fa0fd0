// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/core/tensor.h"

namespace memphis {

// The cross entropy of each window, all of its targets together, in nats: the sum of as many
// neighbouring elements of `loss_T`, in order, as a window has tokens. `loss_T` is f32 or f64, in the
// host's memory, of whole windows.
std::vector<double> sum_windows(const TensorView& loss_T, std::int64_t sequence_length);

}  // namespace memphis
