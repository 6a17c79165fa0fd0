// SPDX-License-Identifier: Apache-2.0
//
// Stands for attention_hopper_forward.cu and attention_hopper_backward.cu in a build for other
// GPUs, which have no wgmma.
#include "csrc/core/error.h"
#include "kernels/attention/attention_gpu.h"
#include "kernels/attention/attention_hopper.h"
#include "kernels/attention/attention_hopper_backward.h"

namespace memphis::kernels::cuda {

bool hopper_takes_attention(const AttentionShape& /*shape*/) {
  return false;
}

namespace {

[[noreturn]] void refuse() {
  throw ContractError(
      "Hopper's attention kernel is called in a build without it (it is for sm_90a alone); ask "
      "hopper_takes_attention first");
}

}  // namespace

void launch_attention_forward_hopper(const AttentionArguments<bf16>& /*arguments*/,
                                     Stream /*stream*/) {
  refuse();
}

void launch_attention_backward_hopper(const AttentionArguments<bf16>& /*arguments*/,
                                      void* /*workspace*/,
                                      Stream /*stream*/) {
  refuse();
}

std::size_t attention_backward_hopper_bytes(const AttentionShape& /*shape*/) {
  return 0;
}

}  // namespace memphis::kernels::cuda
