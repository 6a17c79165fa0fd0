// SPDX-License-Identifier: Apache-2.0
//
// Stands for grouped_matmul_hopper.cu in a build for other GPUs, which have no wgmma.
#include "csrc/core/error.h"
#include "kernels/grouped_matmul/grouped_matmul_hopper.h"

namespace memphis::kernels::cuda {
namespace {

[[noreturn]] void refuse() {
  throw ContractError(
      "Hopper's products of experts are called in a build without them (they are for sm_90a "
      "alone); ask hopper_takes_grouped_matmul first");
}

}  // namespace

bool hopper_takes_grouped_matmul(std::int64_t /*R*/,
                                 std::int64_t /*E*/,
                                 std::int64_t /*N*/,
                                 std::int64_t /*K*/) {
  return false;
}
void launch_grouped_forward_hopper(const GroupedMatmulForward& /*op*/, Stream /*stream*/) {
  refuse();
}
void launch_grouped_dx_hopper(const GroupedMatmulBackward& /*op*/, Stream /*stream*/) {
  refuse();
}
void launch_grouped_dweight_hopper(const GroupedMatmulBackward& /*op*/, Stream /*stream*/) {
  refuse();
}

}  // namespace memphis::kernels::cuda
