// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/digest.h"

#include <new>

#include <xxhash.h>

namespace memphis {

Digest::Digest() : state_(XXH3_createState()) {
  if (state_ == nullptr) {
    throw std::bad_alloc();
  }
  XXH3_128bits_reset(state_);
}

Digest::~Digest() {
  XXH3_freeState(state_);
}

void Digest::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_, bytes.data(), bytes.size());
}

void Digest::update(std::string_view text) {
  XXH3_128bits_update(state_, text.data(), text.size());
}

std::string Digest::hex() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_));
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : canonical.digest) {
    text += kDigits[byte >> 4U];
    text += kDigits[byte & 15U];
  }
  return text;
}

std::string digest_of(std::string_view text) {
  Digest digest;
  digest.update(text);
  return digest.hex();
}

}  // namespace memphis
