// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/token_stream.h"

#include <algorithm>

#include "csrc/core/error.h"

namespace memphis {

void TokenStream::read_mask(std::uint64_t begin, std::span<std::uint8_t> learnt) const {
  require_within(begin, learnt.size(), learnt.size());
  std::fill(learnt.begin(), learnt.end(), std::uint8_t{1});
}

void TokenStream::require_within(std::uint64_t begin,
                                 std::size_t tokens,
                                 std::size_t positions) const {
  require(positions == tokens, "each token that is read has room for its position");
  require(begin <= num_tokens() && tokens <= num_tokens() - begin,
          "tokens are read from within the stream");
}

}  // namespace memphis
