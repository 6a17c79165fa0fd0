// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "csrc/model/block.h"
#include "kernels/attention/attention.h"

// Attention of this rank's queries to the keys of their sequences, which lie on all ranks along
// `context` (csrc/plan/context_order.h): equations (6) to (8), from layer.qkv_TCH to layer.heads_TNH.
// The cap and the temperature are of a logit by itself, and masks of places and positions, so that
// nothing of them asks where a key has come from.
//
// gather      keys and values of all ranks are gathered and put in the order of the sequence: one call
//             of one kernel, whatever the mask, and the bits of one rank's. The backward pass gathers
//             them again, and sums the gradients that all ranks have of them.
//             Dubey et al. 2024, arXiv:2407.21783, section 3.3.2.
// ring        keys and values go from rank to rank; while attention works on those that are here the
//             next ones come. What it makes of each rank's is merged by the log-sum-exp; gradients of
//             keys go back to their rank while the next ones are found, and are summed there once, in
//             the order of ranks. Liu et al. 2023, arXiv:2310.01889.
// all_to_all  each rank gives the others its tokens of some heads and takes theirs of its own heads:
//             whole sequences, as one rank has them, of a part of the heads.
//             Jacobs et al. 2023, arXiv:2309.14509.
namespace memphis {

void context_attention_forward(const BlockContext& context, const Layer& layer);

// `scores` has what the layer knows by itself: this rank's queries, out and their gradients. Adds
// whose keys they see, and writes dq, dk and dv of kept.dqkv_TCH.
void context_attention_backward(const BlockContext& context,
                                const Layer& layer,
                                const LayerGradients<TensorView>& kept,
                                const kernels::AttentionBackward& scores);

}  // namespace memphis
