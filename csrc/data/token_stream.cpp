// SPDX-License-Identifier: Apache-2.0
#include "csrc/data/token_stream.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>

#include <xxhash.h>

#include "csrc/core/error.h"
#include "csrc/core/parallel.h"
#include "csrc/data/tokenizer.h"

namespace memphis {
namespace {

constexpr std::uint64_t kMarkers = 2;  // bos in front of a document's bytes, eos behind

std::string hex(XXH128_hash_t hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : canonical.digest) {
    text += kDigits[byte >> 4U];
    text += kDigits[byte & 15U];
  }
  return text;
}

// The hash of a text's bytes; nothing if they are not text.
std::optional<std::string> digest_of_text(std::span<const std::byte> bytes) {
  if (bytes.empty()) {
    return std::nullopt;
  }
  // In pieces that stay in the cache between the search and the hash: one pass over memory.
  constexpr std::size_t kPieceBytes = std::size_t{128} * 1024;
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_128bits_reset(state.get());
  while (!bytes.empty()) {
    const auto piece = bytes.first(std::min(bytes.size(), kPieceBytes));
    if (std::memchr(piece.data(), 0, piece.size()) != nullptr) {
      return std::nullopt;
    }
    XXH3_128bits_update(state.get(), piece.data(), piece.size());
    bytes = bytes.subspan(piece.size());
  }
  return hex(XXH3_128bits_digest(state.get()));
}

// Tokens of one document from its `begin`-th on; all of them lie within it.
void read_document(std::span<const std::byte> bytes,
                   std::uint64_t begin,
                   std::span<std::int32_t> tokens,
                   std::span<std::int32_t> position) {
  const std::uint64_t end = begin + tokens.size();
  auto token = tokens.begin();
  if (begin == 0) {
    *token++ = ByteTokenizer::kBos;
  }
  const std::uint64_t first_byte = std::max<std::uint64_t>(begin, 1) - 1;
  const std::uint64_t last_byte = std::min<std::uint64_t>(end - 1, bytes.size());
  const auto text = bytes.subspan(first_byte, last_byte - first_byte);
  token = std::transform(text.begin(), text.end(), token, ByteTokenizer::token_of);
  if (end == bytes.size() + kMarkers) {
    *token = ByteTokenizer::kEos;
  }
  constexpr std::uint64_t kLast = std::numeric_limits<std::int32_t>::max();
  for (std::size_t i = 0; i < position.size(); ++i) {
    position[i] = static_cast<std::int32_t>(std::min(begin + i, kLast));
  }
}

}  // namespace

TokenStream::TokenStream(const std::vector<TextFile>& files) {
  std::vector<MappedFile> mapped;
  mapped.reserve(files.size());
  for (const TextFile& file : files) {
    mapped.emplace_back(file.path);
  }
  std::vector<std::optional<std::string>> digests(files.size());
  parallel_chunks(static_cast<std::int64_t>(files.size()), [&](std::int64_t chunk) {
    const auto i = static_cast<std::size_t>(chunk);
    digests[i] = digest_of_text(mapped[i].bytes());
  });

  std::string summary(ByteTokenizer::kName);
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::size_t num_bytes = mapped[i].bytes().size();
    if (!digests[i]) {
      if (files[i].named) {
        throw DataError("cannot train on " + files[i].path.string() + " (it " +
                        (num_bytes == 0 ? "is empty" : "holds a NUL byte, so it is not text") +
                        "); remove it from the config or give a text file");
      }
      ++num_not_text_;
      continue;
    }
    summary.append("\n").append(std::to_string(num_bytes)).append(" ").append(*digests[i]);
    starts_.push_back(starts_.back() + num_bytes + kMarkers);
    documents_.push_back(std::move(mapped[i]));
  }
  fingerprint_ = hex(XXH3_128bits(summary.data(), summary.size()));
}

void TokenStream::read(std::uint64_t begin,
                       std::span<std::int32_t> tokens,
                       std::span<std::int32_t> position) const {
  require(position.size() == tokens.size(), "each token that is read has room for its position");
  require(begin <= num_tokens() && tokens.size() <= num_tokens() - begin,
          "tokens are read from within the stream");
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), begin);
  auto document = static_cast<std::size_t>(after - starts_.begin()) - 1;
  for (std::size_t done = 0; done < tokens.size(); ++document) {
    const std::uint64_t index = begin + done - starts_[document];
    const std::uint64_t left = starts_[document + 1] - starts_[document] - index;
    const std::size_t count = std::min<std::size_t>(tokens.size() - done, left);
    read_document(documents_[document].bytes(),
                  index,
                  tokens.subspan(done, count),
                  position.subspan(done, count));
    done += count;
  }
}

}  // namespace memphis
