// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "csrc/model/groups.h"
#include "csrc/model/parameters.h"
#include "csrc/plan/mesh.h"

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

// Compares what ranks hold alike. What they hold alike they have from the same sums or from each
// other, so that any bit that differs is a fault of a machine, or of the program.
//
// Weights that one rank owns and the others have from it (ZeRO-1 and 2) come anew with each step: a
// fault is seen until then, and one of the owner's is all ranks'. Layers under ZeRO-3 are on one rank
// each, and are not compared.
//
// Every rank makes the same calls. Cost: reads the weights once, and from a GPU brings them to the
// host; an all-gather of 48 bytes a rank.
class ReplicaCheck {
 public:
  // All referents must outlive it.
  ReplicaCheck(const Mesh& mesh, const Groups& groups, const Parameters& parameters, Stream stream);

  // Weights that are whole on this rank. Where some differ, Error(bad_hardware) on all ranks, with the
  // ranks and their machines, thrown by the first of them and as FailedElsewhere by the others.
  void compare_weights();

  // Of the gradients that lie where the backward pass leaves them, before ranks add them up.
  std::uint64_t hash_of_gradients();

  // Two hashes of this rank, of the same work on the same operands. As above where they differ.
  void require_repeated(std::uint64_t first, std::uint64_t second);

 private:
  template <class Selects>
  std::uint64_t hash_of_weights(const Selects& selects);
  class Hasher;

  const Mesh& mesh_;
  const Groups& groups_;
  const Parameters& parameters_;
  Stream stream_;
  std::vector<std::byte> staging_;  // of a GPU's memory
};

}  // namespace memphis
