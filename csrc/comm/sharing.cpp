// SPDX-License-Identifier: Apache-2.0
#include "csrc/comm/sharing.h"

#include <vector>

namespace memphis {

Sharing sum_of_those_with(Communicator& all_host,
                          std::array<std::int64_t, 2> key,
                          std::int64_t value,
                          std::string_view name) {
  using Claim = std::array<std::int64_t, 3>;
  Claim own = {key[0], key[1], value};
  std::vector<Claim> claims(static_cast<std::size_t>(all_host.size()), own);
  const auto words_of = [](Claim* first, std::size_t count) {
    return TensorView(
        first, {static_cast<std::int64_t>(count * first->size())}, DType::i64, Device::cpu);
  };
  all_host.run(
      AllGather{.y = words_of(claims.data(), claims.size()), .x = words_of(&own, 1)}, name, {});
  Sharing sharing{.num_ranks = 0, .sum = 0};
  for (const Claim& claim : claims) {
    if (claim[0] == key[0] && claim[1] == key[1]) {
      ++sharing.num_ranks;
      sharing.sum += claim[2];
    }
  }
  return sharing;
}

}  // namespace memphis
