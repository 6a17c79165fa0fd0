// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"
#include "csrc/optim/optimizer.h"
#include "csrc/plan/mesh.h"
#include "csrc/train/host_pieces.h"
#include "csrc/train/state_seal.h"

// Machines that lie: memory, processors and links that give other bits and say nothing.
namespace memphis {

// Of what a rank holds as the others of its group do.
struct ReplicaHash {
  std::int64_t group = 0;  // the same number on the ranks that hold the same, and on no others
  std::uint64_t hash = 0;
};

// Of the ranks, in their order: those whose hash is not what more than half of their group have, and
// the whole of a group of which no hash has so many. Ascending.
std::vector<int> dissenters(std::span<const ReplicaHash> of_ranks);

// Compares what ranks hold alike, and what a rank holds alone with what it was: nothing writes weights
// and the optimizer's state between two of its steps (StateSeal). What ranks hold alike they have from
// the same sums or from each other, so that any bit that differs is a fault of a machine, or of the
// program.
//
// Weights that one rank owns and the others have from it (ZeRO-1 and 2) come anew with each step: a
// fault in another rank's is seen until then. One of the owner's, which all have, is seen where it was
// made after the step, or where its weights are bf16 and not its master weights, rounded. What an owner
// computes wrongly in its step, and layers under ZeRO-3 that are gathered wrongly, are not seen here.
//
// Every rank makes the same calls. Cost: that of StateSeal::take() for compare(), and of check() for
// the next step or require_kept(); an all-gather of 56 bytes a rank, and a sum of 8.
class ReplicaCheck {
 public:
  // All referents must outlive it. `host_bytes`: comparison_bytes (csrc/plan/host_memory.h), which
  // it holds from the beginning.
  ReplicaCheck(const Mesh& mesh,
               const Groups& groups,
               const Parameters& parameters,
               Optimizer& optimizer,
               std::size_t host_bytes,
               Stream stream);

  // Weights that are whole on this rank, with the other ranks' and with its own master weights. Where
  // some differ, Error(bad_hardware) on all ranks, with the ranks and their machines, thrown by the
  // first of them and as FailedElsewhere by the others. What there is from here on is what
  // require_kept() asks for.
  void compare();

  // As above, where something of what compare() found has changed since: before it is written
  // anywhere, and where a step has come since, as it was before that. Nothing is asked twice.
  enum class Since : std::uint8_t { compared, before_step };
  void require_kept(Since since);
  // The state is about to be another one: that of a checkpoint.
  void forget() { seal_.drop(); }

  // Of the gradients that lie where the backward pass leaves them, before ranks add them up.
  std::uint64_t hash_of_gradients();

  // Two hashes of this rank, of the same work on the same operands. As above where they differ.
  void require_repeated(std::uint64_t first, std::uint64_t second);

  // Of weights and of the optimizer's state, read in all.
  std::uint64_t bytes_read() const { return seal_.bytes_read(); }

 private:
  std::uint64_t hash_of_weights(Axis axis) const;
  // The words of each rank, in order.
  std::vector<std::int64_t> gather(std::span<const std::int64_t> own, std::string_view name);

  const Mesh& mesh_;
  const Groups& groups_;
  const Parameters& parameters_;
  Stream stream_;
  HostPieces pieces_;
  StateSeal seal_;
};

}  // namespace memphis
