// SPDX-License-Identifier: Apache-2.0
//
// Stands for attention_hopper_forward.cu in a build for other GPUs, which have no wgmma.
#include "csrc/core/error.h"
#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/attention_hopper.h"

namespace memphis::kernels::cuda {

bool hopper_takes_attention(const AttentionShape& /*shape*/) {
  return false;
}

void launch_attention_forward_hopper(const AttentionArguments<bf16>& /*arguments*/,
                                     Stream /*stream*/) {
  throw ContractError(
      "Hopper's attention kernel is called in a build without it (it is for sm_90a alone); ask "
      "hopper_takes_attention first");
}

}  // namespace memphis::kernels::cuda
