// SPDX-License-Identifier: Apache-2.0
//
// Stands for experts_hopper.cu in a build for other GPUs, which have no wgmma.
#include "csrc/core/error.h"
#include "kernels/experts/experts_hopper.h"

namespace memphis::kernels::cuda {
namespace {

[[noreturn]] void refuse() {
  throw ContractError(
      "Hopper's parts of the experts are called in a build without them (they are for sm_90a "
      "alone); ask hopper_takes_grouped_matmul first");
}

}  // namespace

void launch_gate_up_forward_hopper(const ExpertsForward& /*op*/, Stream /*stream*/) {
  refuse();
}
void launch_gate_up_backward_hopper(const ExpertsBackward& /*op*/, Stream /*stream*/) {
  refuse();
}

}  // namespace memphis::kernels::cuda
