// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/experts/experts.h"

// Parts of the experts on sm_90a in bf16, where hopper_takes_grouped_matmul takes [2F, D] and F is a
// multiple of 8.
namespace memphis::kernels::cuda {

// gate_up and hidden of ExpertsForward, in one pass.
void launch_gate_up_forward_hopper(const ExpertsForward& op, Stream stream);
// dgate_up, in the place of gate_up, and dgates of ExpertsBackward: the gradient of hidden stays in
// registers, and dhidden_RF is scratch.
void launch_gate_up_backward_hopper(const ExpertsBackward& op, Stream stream);

}  // namespace memphis::kernels::cuda
