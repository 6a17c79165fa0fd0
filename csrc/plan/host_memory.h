// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/core/device.h"
#include "csrc/plan/dims.h"

// What a rank holds in the memory of its machine, beside its device's: what the host reads, fills
// and sends on. Where the device is a GPU this is page-locked memory (PinnedBuffer), which the
// system cannot take back, and which all ranks of a machine take from one pool.
namespace memphis {

// The host prepares and begins a step before it reads what the one before it reports: both have a
// place of their own in its memory.
inline constexpr std::size_t kStepsUnderWay = 2;

// Tokens, targets, positions and whether each is valid; where tokens of a sequence lie on several
// ranks, of those of this one, and their places, and what the ways to the others' keys ask of every
// key: position, number, the key and the place of each number, and, by both orders, whether it is
// valid.
constexpr std::size_t batch_bytes(std::int64_t num_sequences,
                                  std::int64_t sequence_length,
                                  std::int64_t context_ranks = 1) {
  constexpr std::size_t kNumber = sizeof(std::int32_t);
  constexpr std::size_t kMark = sizeof(std::uint8_t);
  const auto num_keys = static_cast<std::size_t>(num_sequences * sequence_length);
  const auto num_tokens = num_keys / static_cast<std::size_t>(context_ranks);
  return context_ranks == 1
             ? num_tokens * (3 * kNumber + kMark)
             : num_tokens * (4 * kNumber + kMark) + num_keys * (4 * kNumber + 2 * kMark);
}

// Of the cross entropy of so many tokens, in the widest type.
constexpr std::size_t token_losses_bytes(std::int64_t num_tokens) {
  return static_cast<std::size_t>(num_tokens) * sizeof(double);
}

// Of a layer's experts, a cut one counted once for each of its pieces: where the rows of each
// begin, and where the last one's end.
constexpr std::int64_t num_expert_offsets(const Dims& dims) {
  return dims.E * dims.expert_pieces + 1;
}
constexpr std::size_t expert_offsets_bytes(const Dims& dims) {
  return static_cast<std::size_t>(num_expert_offsets(dims)) * sizeof(std::int32_t);
}

// What a layer of a micro-batch keeps of the rows that ranks exchange: those offsets, of every rank.
// Nothing where none are exchanged.
constexpr std::size_t sent_offsets_bytes(const Dims& dims) {
  return dims.exchange_rows
             ? static_cast<std::size_t>(dims.expert_ranks) * expert_offsets_bytes(dims)
             : 0;
}

// Through which the tensors of a GPU pass to and from files: enough to keep the link busy. The
// CPU's need none.
constexpr std::size_t staging_bytes(Device device) {
  return device == Device::cpu ? 0 : std::size_t{64} << 20;
}

// Through two such pieces passes what of a GPU is compared, one of which is read while the other
// one is filled: weights and the optimizer's state (run.verify_every), a weight beside its master,
// and gradients (run.recompute_check_every). Both stand where a run does either.
inline constexpr std::size_t kHostPieceBytes = std::size_t{16} << 20;
constexpr std::size_t comparison_bytes(Device device, bool compares) {
  return device == Device::cpu || !compares ? 0 : 2 * kHostPieceBytes;
}

struct HostMemoryPlan {
  std::size_t batches_bytes = 0;  // the samples of a step, and of a pass of validation
  std::size_t statistics_bytes =
      0;  // losses and counts, as they are read back, and the scalars of a step
  std::size_t exchange_bytes = 0;    // how many rows ranks exchange
  std::size_t snapshot_bytes = 0;    // what is saved while training goes on; 0: nothing is
  std::size_t comparison_bytes = 0;  // what is hashed on its way from a GPU
  // While a checkpoint is saved or loaded.
  std::size_t staging_bytes = 0;
  std::size_t trace_bytes = 0;  // of metrics.trace; not page-locked

  // What stands from the beginning of a run to its end.
  std::size_t standing_bytes() const {
    return batches_bytes + statistics_bytes + exchange_bytes + snapshot_bytes + comparison_bytes;
  }
  std::size_t total_bytes() const { return standing_bytes() + staging_bytes + trace_bytes; }
};

}  // namespace memphis
