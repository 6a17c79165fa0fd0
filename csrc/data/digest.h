// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct XXH3_state_s;

namespace memphis {

// xxh3, 128 bits, of bytes that come piece by piece: what a corpus and a tokenizer are told apart by.
class Digest {
 public:
  Digest();
  ~Digest();
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;

  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  // Of all that came so far, in hexadecimal.
  std::string hex() const;

 private:
  XXH3_state_s* state_;
};

std::string digest_of(std::string_view text);

}  // namespace memphis
