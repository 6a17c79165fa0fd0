// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/attention/attention_shape.h"

// What Hopper's attention kernels decide on the host, and which tile a block takes when.
namespace memphis::kernels {

// A cap bounds the logits of a row, in units of ln 2, to -c and c with c = cap * tau * log2(e).
// Relative to a fixed offset from the lowest one to the highest, no probability is subnormal, and
// a sum over S keys, times values of up to 2^16, stays below 2^126. There is such an offset if the
// two are in order: a row then needs no running maximum.
constexpr float hopper_lowest_offset(float c, float log2_S) {
  return c + log2_S - 110.0F;
}
constexpr float hopper_highest_offset(float c) {
  return 126.0F - c;
}

// The work item that block `block` of `num_blocks` takes in its `round`. Items are ordered longest
// first, and blocks take turns from either end, so that who had the longest of one round has the
// shortest of the next: the sums differ by less than one item. From the number of items on there
// are none.
constexpr int hopper_item(int round, int block, int num_blocks) {
  return round * num_blocks + (round % 2 == 0 ? block : num_blocks - 1 - block);
}

namespace cuda {

template <class T>
struct AttentionArguments;

// Whether the forward kernel for sm_90a is in this build, takes the shape and runs on this GPU.
bool hopper_takes_attention(const AttentionShape& shape);
// Requires that it does.
void launch_attention_forward_hopper(const AttentionArguments<bf16>& arguments, Stream stream);

}  // namespace cuda
}  // namespace memphis::kernels
