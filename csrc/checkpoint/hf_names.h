// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

// The names that programs give the tensors of a Grok.
//
//   B  xai-org/grok-2, SGLang, memphis   model.layers.0.block_sparse_moe.experts.0.w1.weight
//   A  hpcai-tech/grok-1, vLLM           model.layers.0.moe_block.experts.0.linear.weight
//   C  keyfan/grok-1-hf                  transformer.decoder_layer.0.moe.0.linear.weight
//
// In each a matrix is [out, in] and an expert has a file entry of its own, so that names are all
// that differ: w1 = linear (through GELU), w3 = linear_v (the factor), w2 = linear_1 (back), as in
// xai-org/grok-1's model.py, MoELayer.
namespace memphis {

// The name of form B for a name of form A or C; any other name as it is.
std::string form_b_name(std::string_view name);

}  // namespace memphis
