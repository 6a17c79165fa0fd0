// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace memphis {

// Where element `index` of [0, size) goes in the pseudo-random permutation named by (key, tweak): a
// pure function, in constant memory, so that sample i of an epoch is found without shuffling the
// epoch. Different tweaks (epochs) of one key give unrelated permutations. Requires index < size.
//
// Cost        fewer than 4 walks of 6 Philox calls on average, whatever the size.
// Source      Black and Rogaway 2002, "Ciphers with arbitrary finite domains" (a Feistel network on
//             the next even power of two, walked until it lands inside).
std::uint64_t permuted_index(std::uint64_t index,
                             std::uint64_t size,
                             std::uint64_t key,
                             std::uint64_t tweak);

}  // namespace memphis
