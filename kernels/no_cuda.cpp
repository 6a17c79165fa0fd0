// SPDX-License-Identifier: Apache-2.0
//
// The CUDA side of every op in a build without the toolkit: one line each. It is not reached as
// long as no stream of Device::cuda can be made.
#include <string>
#include <vector>

#include "csrc/core/error.h"
#include "kernels/adamw/adamw.h"
#include "kernels/attention/attention.h"
#include "kernels/attention/attention_merge.h"
#include "kernels/attention/gather_heads.h"
#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/embedding/embedding.h"
#include "kernels/experts/experts.h"
#include "kernels/geglu/geglu.h"
#include "kernels/global_norm/global_norm.h"
#include "kernels/grouped_matmul/grouped_matmul.h"
#include "kernels/matmul/matmul.h"
#include "kernels/permute/permute.h"
#include "kernels/rmsnorm/rmsnorm.h"
#include "kernels/rope/rope.h"
#include "kernels/router/router.h"

namespace memphis::kernels::cuda {
namespace {

[[noreturn]] void absent(const char* function) {
  throw PreflightError(std::string(function) +
                       " cannot run on device cuda (this binary was built with the cpu preset); "
                       "build with `launch/build.sh cuda` or set run.device=cpu");
}

}  // namespace

// NOLINTNEXTLINE(cppcoreguidelines-macro-usage): a declaration cannot be made by a template.
#define MEMPHIS_NO_CUDA(function, Operands)                  \
  void function(const Operands& /*op*/, Stream /*stream*/) { \
    absent(#function);                                       \
  }

MEMPHIS_NO_CUDA(cross_entropy_shard, CrossEntropyShard)
MEMPHIS_NO_CUDA(cross_entropy_join, CrossEntropyJoin)
MEMPHIS_NO_CUDA(cross_entropy_gradient, CrossEntropyGradient)
MEMPHIS_NO_CUDA(embedding_forward, EmbeddingForward)
MEMPHIS_NO_CUDA(embedding_backward, EmbeddingBackward)
MEMPHIS_NO_CUDA(rmsnorm_forward, RmsNormForward)
MEMPHIS_NO_CUDA(rmsnorm_backward, RmsNormBackward)
MEMPHIS_NO_CUDA(matmul_forward, MatmulForward)
MEMPHIS_NO_CUDA(matmul_backward, MatmulBackward)
std::string matmul_library() {
  absent("matmul_library");
}
void open_matmul_library(std::int64_t /*held_multiprocessors*/) {
  absent("open_matmul_library");
}
std::vector<std::string> matmul_choices() {
  absent("matmul_choices");
}
MEMPHIS_NO_CUDA(rope_forward, RopeForward)
MEMPHIS_NO_CUDA(rope_backward, RopeBackward)
MEMPHIS_NO_CUDA(attention_forward, AttentionForward)
MEMPHIS_NO_CUDA(attention_backward, AttentionBackward)
MEMPHIS_NO_CUDA(attention_merge, AttentionMerge)
MEMPHIS_NO_CUDA(gather_heads, GatherHeads)
MEMPHIS_NO_CUDA(experts_forward, ExpertsForward)
MEMPHIS_NO_CUDA(experts_backward, ExpertsBackward)
MEMPHIS_NO_CUDA(experts_backward_weights, ExpertsBackwardWeights)
MEMPHIS_NO_CUDA(geglu_forward, GegluForward)
MEMPHIS_NO_CUDA(geglu_backward, GegluBackward)
MEMPHIS_NO_CUDA(router_forward, RouterForward)
MEMPHIS_NO_CUDA(router_balance, RouterBalance)
MEMPHIS_NO_CUDA(router_backward, RouterBackward)
MEMPHIS_NO_CUDA(permute_index, PermuteIndex)
MEMPHIS_NO_CUDA(arrival_index, ArrivalIndex)
MEMPHIS_NO_CUDA(permute, Permute)
MEMPHIS_NO_CUDA(unpermute, Unpermute)
MEMPHIS_NO_CUDA(spread_choices, SpreadChoices)
MEMPHIS_NO_CUDA(gather_choices, GatherChoices)
MEMPHIS_NO_CUDA(grouped_matmul_forward, GroupedMatmulForward)
MEMPHIS_NO_CUDA(grouped_matmul_backward, GroupedMatmulBackward)
MEMPHIS_NO_CUDA(cross_entropy, CrossEntropy)
MEMPHIS_NO_CUDA(adamw, AdamW)
MEMPHIS_NO_CUDA(global_norm, GlobalNorm)
MEMPHIS_NO_CUDA(sum_all, SumAll)
MEMPHIS_NO_CUDA(add, Add)
MEMPHIS_NO_CUDA(scale, Scale)
MEMPHIS_NO_CUDA(soft_cap_forward, SoftCapForward)
MEMPHIS_NO_CUDA(soft_cap_backward, SoftCapBackward)
MEMPHIS_NO_CUDA(convert, Convert)

std::size_t attention_backward_workspace_bytes(const AttentionBackward& /*op*/) {
  absent("attention_backward_workspace_bytes");
}

}  // namespace memphis::kernels::cuda
