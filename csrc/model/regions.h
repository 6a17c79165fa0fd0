// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "csrc/comm/communicator.h"
#include "csrc/model/block.h"

// How tokens pass between the three regions of a block, forward and backward:
//
//   residual   norms and the residual stream. A tensor rank has a piece of each sequence, or
//              without sequence parallelism all of it, computed on every rank alike.
//   whole      attention, dense FFN, embedding, head: every tensor rank has all tokens and a piece
//              of the width, so its output is one term of a sum.
//   routed     router and experts: a tensor rank has a piece of each sequence, in every case.
//
// Each way in is the derivative of the way out. Where one rank holds everything the three are the
// same memory and nothing moves: the plan leaves the tensors between them out.
//
// Source: Korthikanti et al. 2022, arXiv:2205.05198 (sequence parallelism).
namespace memphis {

// residual -> whole, and the derivative of sum_terms. The view is valid until the next call.
TensorView whole_tokens(const BlockContext& context, const TensorView& residual_TD);

// Where an op of the whole region writes its term of `residual_TD`, and the sum over ranks.
TensorView term_of(const BlockContext& context, const TensorView& residual_TD);
void sum_terms(const BlockContext& context, const TensorView& residual_TD);

// residual -> routed. The view is valid until the next call.
TensorView routed_tokens(const BlockContext& context, const TensorView& residual_TD);

// Where an op of the routed region writes its part of `residual_TD`, and the joining of the parts.
TensorView routed_part_of(const BlockContext& context, const TensorView& residual_TD);
void join_routed_parts(const BlockContext& context, const TensorView& residual_TD);
// The same for who has products to do before they are needed: begun where exchanges overlap
// (dims.tensor_chunks), else done, and null.
std::unique_ptr<Communicator::Work> start_joining_routed_parts(const BlockContext& context,
                                                               const TensorView& residual_TD);

// This rank's piece of each sequence of `whole`, [T, ...], to `piece`, [routed_T, ...].
void copy_piece(const BlockContext& context, const TensorView& piece, const TensorView& whole);

}  // namespace memphis
