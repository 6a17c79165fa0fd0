// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/grouped_matmul/grouped_matmul.h"

// The products of experts on sm_90a, by wgmma and TMA, in bf16.
namespace memphis::kernels::cuda {

// Whether they are in this build, take products of R rows of these widths, and run on this GPU.
// The others require that they do.
bool hopper_takes_grouped_matmul(std::int64_t R, std::int64_t E, std::int64_t N, std::int64_t K);

void launch_grouped_forward_hopper(const GroupedMatmulForward& op, Stream stream);
void launch_grouped_dx_hopper(const GroupedMatmulBackward& op, Stream stream);
void launch_grouped_dweight_hopper(const GroupedMatmulBackward& op, Stream stream);

}  // namespace memphis::kernels::cuda
