// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "csrc/config/config.h"
#include "csrc/core/device.h"
#include "csrc/plan/dims.h"

// Gathers and sums of tensor ranks beside their products.
//
// In the backward pass there are two products at each end of a branch, and one is beside the exchange of
// the other: nothing is cut, and nothing is lost. A product that is alone is cut into chunks of tokens,
// of which one is on its way while another is computed: of k chunks, one k-th of the exchange is seen.
namespace memphis {

// Of how many rows a product has at least, how many of these lie together, and how many chunks there are
// at most.
struct ChunkSizes {
  std::int64_t least_rows = 0;
  std::int64_t least_run_rows = 0;
  std::int64_t most_chunks = 0;
};
ChunkSizes chunk_sizes(Device device);

// Whether exchanges travel beside products: parallel.overlap_tensor, with its `auto` decided: on a GPU,
// wherever there are any. On a CPU what moves data takes a core from what computes: 28,400 to 29,400
// tokens/s against 30,300 to 31,600 on two ranks with a core each (BENCHMARKS.md).
bool overlaps_tensor(const Config& config, Device device);

// The chunks of micro-batches of `dims`: as many as there may be of `sizes`, runs of whole sequences
// where there are as many, else parts of one sequence, the same part of each rank's piece of it. Every
// chunk's rows begin 16-byte aligned in each operand of a product, in any dtype. With `at_least_two`
// also where they have fewer rows.
TensorChunks cut_into_chunks(const Dims& dims, const ChunkSizes& sizes, bool at_least_two);

// The same for what `config` asks for; none where nothing overlaps.
TensorChunks choose_tensor_chunks(const Config& config, const Dims& dims, Device device);

// ConfigError where parallel.overlap_tensor is required and the micro-batches of a step, which have
// these dims with their chunks, cannot be cut.
void require_tensor_chunks(const Config& config, const Dims& dims);

}  // namespace memphis
