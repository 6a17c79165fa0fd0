// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace memphis {

// Tokens [begin, end) of a stream.
struct TokenRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  std::uint64_t size() const { return end - begin; }
};

// Documents as one sequence of tokens, of which any part is read at once.
//
// Reading is const and without state: any number of threads may read.
class TokenStream {
 public:
  // A position from here on stays here, as does one in a document whose beginning is not known.
  static constexpr std::int32_t kFarPosition = INT32_MAX;

  TokenStream() = default;
  virtual ~TokenStream() = default;

  virtual std::uint64_t num_tokens() const = 0;

  // Hexadecimal, of all that tokens depend on. Paths do not enter: a corpus that moved is the same
  // corpus.
  virtual const std::string& fingerprint() const = 0;

  // Tokens [begin, begin + tokens.size()), and the index of each within its document (the first has
  // 0), at most kFarPosition. Does not allocate, but for a file that is not held open. DataError,
  // which names the file, if it is not what it was when the stream was opened. ContractError beyond
  // the last token or where the spans differ in size.
  virtual void read(std::uint64_t begin,
                    std::span<std::int32_t> tokens,
                    std::span<std::int32_t> position) const = 0;

  // Whether some tokens are to be read and not to be learnt, as those of a prompt.
  virtual bool has_mask() const { return false; }
  // 1 for each token that is to be learnt, else 0, from `begin` on.
  virtual void read_mask(std::uint64_t begin, std::span<std::uint8_t> learnt) const;

 protected:
  TokenStream(const TokenStream&) = default;
  TokenStream& operator=(const TokenStream&) = default;
  TokenStream(TokenStream&&) = default;
  TokenStream& operator=(TokenStream&&) = default;

  void require_within(std::uint64_t begin, std::size_t tokens, std::size_t positions) const;
};

}  // namespace memphis
