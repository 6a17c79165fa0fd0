// SPDX-License-Identifier: Apache-2.0
#include "csrc/plan/tensor_chunks.h"

#include <algorithm>
#include <numeric>

#include <spdlog/fmt/fmt.h>

#include "csrc/config/validate.h"
#include "csrc/core/error.h"

namespace memphis {
namespace {

// A tile of a product's rows on the CPU: one that is shorter copies the weight as often for less work.
constexpr std::int64_t kRowsOfCpu = 512;
// Tiles of 128 x 256 fill the 132 multiprocessors of an H100 round by round. Of Grok-1's products of one
// of four tensor ranks, the narrowest (2048 columns) has 128 tiles at 2048 rows, 97 % of a round, and
// 64 at 1024.
constexpr std::int64_t kRowsOfGpu = 2048;
// Runs of rows that lie apart are products of their own on the CPU, and tiles of their own on a GPU.
constexpr std::int64_t kRowsOfTile = 128;

// What every first row of a chunk is to be a multiple of: rows of two bytes an element are the worst.
std::int64_t row_multiple(const Dims& d) {
  constexpr std::int64_t kElements = 8;  // 16 bytes of bf16
  std::int64_t common = kElements;
  for (const std::int64_t width : {d.D, d.local_C * d.H, d.local_N * d.H, d.local_dense_F}) {
    common = std::gcd(common, width);
  }
  return kElements / common;
}

}  // namespace

ChunkSizes chunk_sizes(Device device) {
  const bool on_gpu = device == Device::cuda;
  return {.least_rows = on_gpu ? kRowsOfGpu : kRowsOfCpu,
          .least_run_rows = on_gpu ? kRowsOfTile : kRowsOfCpu,
          .most_chunks = TensorChunks::kMost};
}

bool overlaps_tensor(const Config& config, Device device) {
  switch (config.parallel.overlap_tensor) {
    case OverlapChoice::never:
      return false;
    case OverlapChoice::required:
      return true;
    case OverlapChoice::automatic:
      return device == Device::cuda && tensor_overlap_refusal(config).empty();
  }
  return false;
}

TensorChunks cut_into_chunks(const Dims& d, const ChunkSizes& sizes, bool at_least_two) {
  const std::int64_t least = at_least_two ? 2 : 1;
  const std::int64_t wanted = std::max(std::min(d.T / sizes.least_rows, sizes.most_chunks), least);
  const std::int64_t multiple = row_multiple(d);
  const std::int64_t piece = d.residual_T / d.B;
  // Sequences whose pieces end where the next may begin.
  const std::int64_t together = multiple / std::gcd(multiple, piece);
  TensorChunks chunks{.sequences = (d.B + wanted - 1) / wanted};
  chunks.sequences = std::min((chunks.sequences + together - 1) / together * together, d.B);
  if (chunks.sequences > 1 || wanted == d.B || together > 1) {
    return chunks;
  }
  const auto is_cut = [&](std::int64_t cuts) { return piece % (cuts * multiple) == 0; };
  std::int64_t cuts = wanted / d.B;
  while (cuts > 1 && (!is_cut(cuts) || piece / cuts < sizes.least_run_rows)) {
    --cuts;
  }
  if (d.B == 1 && cuts < least) {
    for (cuts = least; cuts < TensorChunks::kMost && !is_cut(cuts);) {
      ++cuts;
    }
    cuts = is_cut(cuts) ? cuts : 1;
  }
  chunks.cuts = std::max<std::int64_t>(cuts, 1);
  return chunks;
}

TensorChunks choose_tensor_chunks(const Config& config, const Dims& dims, Device device) {
  if (!dims.tensor_parallel || !overlaps_tensor(config, device)) {
    return {};
  }
  const bool required = config.parallel.overlap_tensor == OverlapChoice::required;
  return cut_into_chunks(dims, chunk_sizes(device), required);
}

void require_tensor_chunks(const Config& config, const Dims& dims) {
  if (dims.tensor_parallel && config.parallel.overlap_tensor == OverlapChoice::required &&
      dims.num_chunks(dims.tensor_chunks) < 2) {
    throw ConfigError(
        fmt::format("parallel.overlap_tensor is required and a micro-batch of {} tokens a rank "
                    "cannot be cut in "
                    "two (each part is to begin at a multiple of {} of each sequence's {}); raise "
                    "batch.micro_batch, or set parallel.overlap_tensor to auto",
                    dims.residual_T,
                    row_multiple(dims),
                    dims.residual_T / dims.B));
  }
}

}  // namespace memphis
